"""What the tests of the tokenizer families share: reading what the originals gave, and checks that hold for all."""

from __future__ import annotations

import copy
import json
import pickle
import random
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from keju.tokenizers.family import answer_end_id
from keju.tokenizers.sentencepiece_family import SentencePieceFamily

NUM_TEXTS = 295
ODD = [*"<|>[] \n\t\u3000\u200b▁，。😀龘é", "  ", "\r\n", "你好", "北京", "Hello", "world", "3.14", "sop", "eop", "<n>"]
ODD += ["<0x0A>", "<|user|>", "[gMASK]", "<s>", "</s>", "<unk>", "<pad>"]


def read(folder: Path, name: str) -> list[dict]:
    with open(folder / name, encoding="utf-8") as lines:  # not splitlines: some texts hold a U+2028
        return [json.loads(line) for line in lines]


def turns(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    messages = [] if system is None else [{"role": "system", "content": system}]
    roles = ["user", "assistant"] * len(contents)
    return messages + [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]


def odd_texts(tokenizer: PreTrainedTokenizerBase, count: int = 300) -> list[str]:
    rng = random.Random(0)
    pieces = [*ODD, *tokenizer.added_tokens_encoder]
    return ["", " "] + ["".join(rng.choices(pieces, k=rng.randint(1, 10))) for _ in range(count)]


def check_texts(tokenizer: PreTrainedTokenizerBase, folder: Path, *, skip_decoding: tuple[str, ...] = ()) -> None:
    """Tokens, ids and decoded texts of every string. skip_decoding: fields that the family means to differ in."""
    records = read(folder, "tokenizer.jsonl")
    assert len(records) == NUM_TEXTS
    batch = tokenizer([record["text"] for record in records])["input_ids"]
    for record, row in zip(records, batch, strict=True):
        text, ids, with_special = record["text"], record["ids"], record["ids_with_special"]
        assert tokenizer.tokenize(text) == record["tokens"], text
        assert tokenizer.convert_tokens_to_ids(record["tokens"]) == ids, text
        assert tokenizer.encode(text, add_special_tokens=False) == ids, text
        assert tokenizer.encode(text) == with_special == row, text
        if isinstance(record["decoded"], str):  # one original failed on an empty list
            assert tokenizer.decode(ids) == record["decoded"], text
        else:
            assert tokenizer.decode(ids) == "" == text
        if "decoded_with_special" not in skip_decoding:
            assert tokenizer.decode(torch.tensor(with_special)) == record["decoded_with_special"], text
        if "decoded_skip_special" not in skip_decoding:
            decoded = tokenizer.decode(with_special, skip_special_tokens=True)
            assert decoded == record["decoded_skip_special"], text


def check_pairs(tokenizer: PreTrainedTokenizerBase, folder: Path, *, pad_id: int | None = None) -> int:
    """Ids of pairs and padded batches; pad_id: what the original padded with, if not with ours. Returns how many."""
    checked = 0
    for record in read(folder, "tokenizer_pairs.jsonl"):
        expected = record["out"]
        batched = "batch" in record
        if batched:
            output = tokenizer(record["batch"], padding_side=record["padding_side"], **record["kwargs"])
        else:
            output = tokenizer(record["text"], record["text_pair"], **record["kwargs"])
        assert list(output) == ["input_ids", "attention_mask"]
        rows = zip(output["input_ids"], output["attention_mask"], strict=True) if batched else [output.values()]
        for ids, mask in rows:
            assert all(index == tokenizer.pad_token_id for index, real in zip(ids, mask, strict=True) if not real)
        if "error" in expected:  # the original could not pad
            assert "padding token" in expected["error"]
            continue
        if pad_id is not None and batched:
            output = {
                "input_ids": [
                    [index if real else pad_id for index, real in zip(ids, mask, strict=True)]
                    for ids, mask in zip(output["input_ids"], output["attention_mask"], strict=True)
                ],
                "attention_mask": output["attention_mask"],
            }
        elif pad_id is not None:
            masked = zip(output["input_ids"], output["attention_mask"], strict=True)
            output = {
                "input_ids": [index if real else pad_id for index, real in masked],
                "attention_mask": output["attention_mask"],
            }
        assert output["input_ids"] == expected["input_ids"], record
        if "attention_mask" in expected:
            assert output["attention_mask"] == expected["attention_mask"], record
        checked += 1
    return checked


def check_fast_path(tokenizer: SentencePieceFamily) -> None:
    """The way of transformers, text by text and token by token, gives the same in every respect."""
    slow = super(SentencePieceFamily, tokenizer)._encode_plus
    texts = odd_texts(tokenizer)
    settings = [{}, {"add_special_tokens": False}, {"max_length": 4, "truncation_strategy": "longest_first"}]
    settings += [{"max_length": 7, "truncation_strategy": "only_first", "padding_strategy": "max_length"}]
    longest = {"padding_strategy": "longest", "pad_to_multiple_of": 8}
    settings += [{**longest, "padding_side": "left"}, {**longest, "padding_side": "right"}]
    settings += [{"padding_strategy": "longest", "return_attention_mask": False, "return_tensors": "pt"}]
    for raw in settings:
        kwargs = {key: strategy(key, value) for key, value in raw.items()}
        expected, output = slow(texts, **kwargs), tokenizer._encode_plus(texts, **kwargs)
        assert list(output) == list(expected)
        for name in expected:
            if "return_tensors" in kwargs:
                assert torch.equal(output[name], expected[name])
            else:
                assert output[name] == expected[name], (raw, name)
        for text in texts[:50]:
            assert dict(tokenizer._encode_plus(text, **{**kwargs, "return_tensors": None})) == dict(
                slow(text, **{**kwargs, "return_tensors": None})
            ), (raw, text)
    assert [tokenizer.encode(text) for text in texts] == tokenizer(texts)["input_ids"]


def strategy(name: str, value):
    from transformers.tokenization_utils_base import TruncationStrategy
    from transformers.utils import PaddingStrategy

    kinds = {"truncation_strategy": TruncationStrategy, "padding_strategy": PaddingStrategy}
    return kinds[name](value) if name in kinds else value


def chat_ids(tokenizer: PreTrainedTokenizerBase, messages: list[dict], **kwargs) -> list[int]:
    return tokenizer.apply_chat_template(messages, return_dict=False, **kwargs)


def check_chats(tokenizer: PreTrainedTokenizerBase) -> None:
    """A prompt begins its conversation; answers end; what users type is no special token; batches pad."""
    specials = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    names = [*tokenizer.added_tokens_encoder, "[gMASK]", "<eop>", "<|user|>", "sop", "eop"]
    plain = chat_ids(tokenizer, turns("一", "二", "三", "四", system="五"))
    typed = "".join(f"{name} 问 " for name in names)
    for count in (2, 4, 6):
        for system in (None, "规则"):
            messages = turns(*["今天天气怎么样？", "很好。"] * (count // 2), system=system)
            prompt = chat_ids(tokenizer, messages[:-1], add_generation_prompt=True)
            whole = chat_ids(tokenizer, messages)
            assert whole[: len(prompt)] == prompt
            assert whole[-1] == answer_end_id(tokenizer)
            answer = tokenizer.decode(whole[len(prompt) : -1], skip_special_tokens=True)
            assert answer.strip() == tokenizer.decode(
                tokenizer.encode("很好。", add_special_tokens=False), skip_special_tokens=True
            )
            assert chat_ids(tokenizer, messages, continue_final_message=True) == whole[:-1]
            bare = chat_ids(tokenizer, messages[:-1])
            assert len(bare) <= len(prompt)
    messages = turns(typed, typed, typed, typed, system=typed)
    ids = chat_ids(tokenizer, messages)
    assert [index for index in ids if index in specials] == [index for index in plain if index in specials]
    conversations = [turns("你好"), turns("今天天气怎么样？", "很好。", "为什么？")]
    alone = [chat_ids(tokenizer, messages, add_generation_prompt=True) for messages in conversations]
    kwargs = {"padding": True, "return_tensors": "pt", "tokenizer_kwargs": {"padding_side": "left"}}
    batch = tokenizer.apply_chat_template(conversations, add_generation_prompt=True, **kwargs)
    for row, mask, expected in zip(batch["input_ids"], batch["attention_mask"], alone, strict=True):
        assert row[mask.bool()].tolist() == expected
        assert mask.tolist() == sorted(mask.tolist())
    for wrong, message in (
        ([{"role": "user", "content": ["图"]}], "must be a text"),
        ([{"role": "narrator", "content": "从前"}], "narrator"),
        ([], "empty conversation"),
    ):
        with pytest.raises(ValueError, match=message):
            chat_ids(tokenizer, wrong)
    with pytest.raises(ValueError, match="a generation prompt follows a user"):
        chat_ids(tokenizer, turns("一", "二"), add_generation_prompt=True)
    with pytest.raises(ValueError, match="only an assistant's message is continued"):
        chat_ids(tokenizer, turns("一"), continue_final_message=True)
    with pytest.raises(ValueError, match="tools, documents and assistant masks"):
        chat_ids(tokenizer, turns("一"), tools=[{"name": "f"}])


def check_added_tokens(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Tokens of the user's: recognised in a text, with ids that stay, saved and loaded."""
    size = len(tokenizer)
    assert tokenizer.add_tokens(["<工具>"]) == 1
    assert tokenizer.add_special_tokens({"extra_special_tokens": ["<图>"]}, replace_extra_special_tokens=False) == 1
    assert tokenizer.add_tokens(["<工具>"]) == 0
    assert len(tokenizer) == size + 2
    tokenizer.save_pretrained(folder)
    again = type(tokenizer).from_pretrained(folder)
    for each in (tokenizer, again):
        assert len(each) == size + 2
        assert each.convert_tokens_to_ids(["<工具>", "<图>"]) == [size, size + 1]
        assert each.convert_ids_to_tokens([size, size + 1]) == ["<工具>", "<图>"]
        ids = each.encode("你好<工具>世界<图>和平", add_special_tokens=False)
        assert (ids.count(size), ids.count(size + 1)) == (1, 1)
        skipped = each.decode(ids, skip_special_tokens=True)
        assert "<工具>" in skipped and "<图>" not in skipped
        assert each.get_vocab()["<工具>"] == size
        assert size not in each.encode("你好<工具>世界", add_special_tokens=False, split_special_tokens=True)
    assert again.all_special_ids == tokenizer.all_special_ids


def check_round_trip(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    texts = odd_texts(tokenizer, 50)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert "auto_map" not in config and "vocab_file" not in config and "published_code" not in config
    expected = tokenizer(texts)["input_ids"]
    again = type(tokenizer).from_pretrained(folder)
    again.save_pretrained(folder / "again")
    third = type(tokenizer).from_pretrained(folder / "again")
    for twin in (again, third, pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer)):
        assert type(twin) is type(tokenizer)
        assert twin(texts)["input_ids"] == expected
        assert [twin.decode(ids) for ids in expected] == [tokenizer.decode(ids) for ids in expected]
        assert twin.special_tokens_map == tokenizer.special_tokens_map
        assert twin.all_special_ids == tokenizer.all_special_ids
        assert twin.added_tokens_encoder == tokenizer.added_tokens_encoder
        assert (twin.chat_template, len(twin)) == (tokenizer.chat_template, len(tokenizer))
        assert (twin.padding_side, twin.truncation_side) == (tokenizer.padding_side, tokenizer.truncation_side)


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, *, first: int = 0) -> None:
    """Names and ids (from `first` on) belong together; ids that models have but tokenizers do not can be decoded."""
    vocabulary = tokenizer.get_vocab()
    for token, index in vocabulary.items():
        assert index < first or tokenizer.convert_tokens_to_ids(token) == index
        assert tokenizer.convert_ids_to_tokens(index) == token
    assert max(vocabulary.values()) == len(tokenizer) - 1
    assert isinstance(tokenizer.decode([len(tokenizer) + 5, 10**9]), str)


def check_broken_folders(cls: type, folder: Path, file_name: str, model: Path) -> None:
    """No file, an empty one, half of one, and no model at all: one line that names it."""
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": cls.__name__}))
    for content in (None, b"", model.read_bytes()[: model.stat().st_size // 2], b"\xff" * 99):
        if content is not None:
            (folder / file_name).write_bytes(content)
        with pytest.raises(ValueError, match=file_name) as error:
            cls.from_pretrained(folder)
        assert "\n" not in str(error.value)

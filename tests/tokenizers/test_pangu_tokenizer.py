"""The Pangu tokenizer against what the published one gave (../shared/golden/gptpangu), with jieba as it is released."""

from __future__ import annotations

import copy
import json
import pickle
import random
import re
import shutil
import subprocess
import sys

import pytest
import torch
from transformers import AutoTokenizer

from keju.tokenizers.pangu import PanguTokenizer

VARIANTS = {"tokenizer_patched_jieba": True, "tokenizer_stock_jieba": False}
SPECIAL = ["<s>", "<sep>", "<pad>", "<eot>", "<unk>"]
PUBLISHED_CONFIG = {
    "tokenizer_class": "GPTPanguTokenizer",
    "auto_map": {"AutoTokenizer": ["tokenization_gptpangu.GPTPanguTokenizer", None]},
    "model_max_length": 1024,
}


@pytest.fixture(scope="module")
def vocabulary(shared):
    return shared / "data" / "tokenizers" / "pangu" / "vocab.model"


@pytest.fixture(scope="module")
def golden(shared):
    def read(variant: str, name: str) -> list[dict]:
        path = shared / "golden" / "gptpangu" / variant / name
        with open(path, encoding="utf-8") as lines:  # not splitlines: some texts hold a U+2028
            return [json.loads(line) for line in lines]

    return read


@pytest.fixture
def tokenizer(vocabulary):
    return PanguTokenizer(str(vocabulary))


def turns(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    messages = [] if system is None else [{"role": "system", "content": system}]
    roles = ["user", "assistant"] * len(contents)
    return messages + [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_text_equals_the_original(golden, vocabulary, variant):
    tokenizer = PanguTokenizer(str(vocabulary), patched_jieba=VARIANTS[variant])
    records = golden(variant, "tokenizer.jsonl")
    assert len(records) == 295
    for record in records:
        text, ids = record["text"], record["ids"]
        assert tokenizer.words(text) == record["tokens"], text
        assert tokenizer.encode(text, add_special_tokens=False) == ids, text
        assert tokenizer.encode(text) == record["ids_with_special"], text
        assert tokenizer.decode(ids) == record["decoded"], text
        assert tokenizer.decode(record["ids_with_special"]) == record["decoded_with_special"], text
        assert tokenizer.decode(torch.tensor(ids), skip_special_tokens=True) == record["decoded_skip_special"], text
        assert tokenizer.convert_ids_to_tokens(ids) == record["pieces"], text
        assert tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text)) == ids, text


@pytest.mark.parametrize("variant", VARIANTS)
def test_pairs_truncation_and_padding_equal_the_original(golden, vocabulary, variant):
    tokenizer = PanguTokenizer(str(vocabulary), patched_jieba=VARIANTS[variant])
    for record in golden(variant, "tokenizer_pairs.jsonl"):
        if "batch" in record:
            output = tokenizer(record["batch"], padding_side=record["padding_side"], **record["kwargs"])
        else:
            output = tokenizer(record["text"], record["text_pair"], **record["kwargs"])
        assert list(output) == ["input_ids", "attention_mask"]
        for name in output:
            assert output[name] == record["out"][name], record


def test_ids_and_sides_equal_the_original(golden, tokenizer, shared):
    path = shared / "golden" / "gptpangu" / "tokenizer_patched_jieba" / "tokenizer_info.json"
    info = json.loads(path.read_text())
    assert len(tokenizer) == tokenizer.vocab_size == info["vocab_size"]
    assert len(tokenizer.get_vocab()) == 40000
    assert tokenizer.special_tokens_map == info["special_tokens_map"]
    assert {name: getattr(tokenizer, name) for name in info["ids"]} == info["ids"]
    assert (tokenizer.padding_side, tokenizer.truncation_side) == (info["padding_side"], info["truncation_side"])


def random_texts(count: int) -> list[str]:
    rng = random.Random(0)
    pieces = [*SPECIAL, "</s>", "<R>", "sep>", "<sep", "C++", "a_b", "AT&T", "3.14", "5%", "hello", "\r\n"]
    pieces += [*"<>-%▂▁龘的，。😀 \n\t", "<<", "<-", "你好", "北京大学", "研究生命起源", "长春市长"]
    ties = [character * length for character in "啊哈一" for length in range(20, 60)]
    return ties + ["".join(rng.choices(pieces, k=rng.randint(1, 12))) for _ in range(count)]


def test_words_equal_those_of_a_patched_jieba(tokenizer, vocabulary, monkeypatch):
    """The real patch, applied to the real module for as long as this test runs."""
    import jieba

    released = PanguTokenizer(str(vocabulary), patched_jieba=False)
    reference = jieba.Tokenizer()
    reference.FREQ, reference.total = reference.gen_pfdict(reference.get_dict_file())
    reference.initialized = True
    for token in [*SPECIAL, "</s>"]:
        reference.add_word(token)
    stand_ins = str.maketrans(" \n", "\u2582\u2583")
    texts = random_texts(2000)
    for text in texts:
        assert released.words(text) == [word.translate(stand_ins) for word in reference.cut(text)], text
    patched = jieba.re_han_default.pattern.replace("]+)", "<>]+)")
    monkeypatch.setattr(jieba, "re_han_default", re.compile(patched))
    for text in texts:
        assert tokenizer.words(text) == [word.translate(stand_ins) for word in reference.cut(text)], text


def test_jieba_stays_untouched(vocabulary):
    code = f"""
import jieba, jieba.finalseg
from keju.tokenizers.pangu import PanguTokenizer
pattern = jieba.re_han_default.pattern
tokenizer = PanguTokenizer({str(vocabulary)!r})
before = tokenizer.encode("石墨烯电池<sep>好")
assert not jieba.dt.initialized and not jieba.dt.FREQ
jieba.add_word("石墨烯电池"); jieba.add_word("石墨烯")
assert jieba.re_han_default.pattern == pattern and "<" not in pattern
assert not jieba.finalseg.Force_Split_Words
assert tokenizer.encode("石墨烯电池<sep>好") == before and 5 in before
assert jieba.lcut("<sep>") == ["<", "sep", ">"]
print("fine")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stdout.strip() == "fine", result.stderr


def test_special_tokens_may_be_kept_as_text(tokenizer):
    assert tokenizer.encode("你好<sep>", add_special_tokens=False) == [5772, 5]
    assert 5 not in tokenizer.encode("你好<sep>", add_special_tokens=False, split_special_tokens=True)


def test_added_tokens(tokenizer, tmp_path):
    assert tokenizer.add_tokens(["<工具>"]) == 1
    assert len(tokenizer) == 40001
    tokenizer.save_pretrained(tmp_path)
    for each in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        ids = each.encode("你好<工具>世界 和平", add_special_tokens=False)
        assert ids == [5772, 40000, 267, 13, 4, *each.encode("和平", add_special_tokens=False)]
        assert each.decode(ids) == "你好<工具>世界 和平"


def test_masks_of_pairs(tokenizer):
    output = tokenizer("今天", "天气很好", return_token_type_ids=True, return_special_tokens_mask=True)
    ids = output["input_ids"]
    split = ids.index(5)
    assert output["token_type_ids"] == [0] * split + [1] * (len(ids) - split)
    assert output["special_tokens_mask"] == [int(index in (1, 5, 9)) for index in ids]
    single = tokenizer("今天", return_token_type_ids=True)
    assert single["token_type_ids"] == [0] * len(single["input_ids"])


def test_single_turn_chats_equal_the_pairs_of_the_original(golden, tokenizer):
    pairs = [row for row in golden("tokenizer_patched_jieba", "tokenizer_pairs.jsonl") if row.get("kwargs") == {}]
    pairs = [row for row in pairs if "text_pair" in row]
    assert pairs
    for row in pairs:
        messages = turns(row["text"], row["text_pair"])
        expected = row["out"]["input_ids"]
        assert tokenizer.apply_chat_template(messages, return_dict=False) == expected
        prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=False)
        assert expected[: len(prompt)] == prompt
        assert prompt[-1] == tokenizer.sep_token_id


def test_chats_with_a_system_text_and_several_turns(tokenizer):
    render = lambda messages, **kwargs: tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)  # noqa: E731
    assert render(turns("问", "答", system="规则")) == "<s>规则\n\n问<sep>答<eot>"
    assert render(turns("问", "答", system="")) == "<s>问<sep>答<eot>"
    conversation = turns("一", "二", "三", "四", system="规则")
    assert render(conversation) == "<s>规则\n\n一<sep>二<eot><s>三<sep>四<eot>"
    assert render(conversation[:-1], add_generation_prompt=True) == "<s>规则\n\n一<sep>二<eot><s>三<sep>"
    assert render(turns("问", "答的开"), continue_final_message=True) == "<s>问<sep>答的开"
    assert render(turns(" 问 \n", "\n答 ")) == "<s> 问 \n<sep>\n答 <eot>"
    for wrong in (turns("问", "答")[1:], turns("问") * 2, [*turns("问"), {"role": "system", "content": "晚"}]):
        with pytest.raises(Exception, match="turns must alternate between user and assistant"):
            render(wrong)


def test_round_trip(tokenizer, vocabulary, tmp_path):
    texts = random_texts(50)
    tokenizer.save_pretrained(tmp_path / "patched")
    PanguTokenizer(str(vocabulary), patched_jieba=False).save_pretrained(tmp_path / "released")
    again = AutoTokenizer.from_pretrained(tmp_path / "patched")
    assert type(again) is PanguTokenizer
    assert again.chat_template == tokenizer.chat_template
    assert again(texts)["input_ids"] == tokenizer(texts)["input_ids"]
    assert AutoTokenizer.from_pretrained(tmp_path / "released").encode("<sep>", add_special_tokens=False) != [5]
    assert "auto_map" not in json.loads((tmp_path / "patched" / "tokenizer_config.json").read_text())
    for twin in (pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer)):
        assert twin(texts)["input_ids"] == tokenizer(texts)["input_ids"]


@pytest.mark.parametrize("trust_remote_code", [None, False, True])
@pytest.mark.parametrize("with_model_config", [False, True])
def test_published_folders_load_without_their_code(
    shared, vocabulary, tmp_path, monkeypatch, with_model_config, trust_remote_code
):
    shutil.copy(vocabulary, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(PUBLISHED_CONFIG))
    (tmp_path / "tokenization_gptpangu.py").write_text("raise RuntimeError('code from a checkpoint ran')\n")
    if with_model_config:
        shutil.copy(shared / "golden" / "gptpangu" / "config.upstream_style.json", tmp_path / "config.json")
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("asked whether to run code"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=trust_remote_code)
    assert type(tokenizer) is PanguTokenizer
    assert tokenizer.encode("你好<sep>") == [1, 5772, 5, 9]
    assert tokenizer.model_max_length == 1024
    tokenizer.save_pretrained(tmp_path / "saved")
    assert "auto_map" not in json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())


def test_missing_vocabulary(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(PUBLISHED_CONFIG))
    with pytest.raises((ValueError, OSError), match="vocab"):
        AutoTokenizer.from_pretrained(tmp_path)


def test_left_padding_generates_what_single_rows_do(tokenizer):
    from keju.models.pangu import PanguConfig, PanguForCausalLM

    torch.manual_seed(0)
    config = PanguConfig(hidden_size=16, num_layers=2, num_heads=2, max_position_embeddings=64, initializer_range=0.5)
    model = PanguForCausalLM(config).eval()
    prompts = ["你好", "今天天气怎么样？请用一句话回答。", "写一首诗"]
    tokenizer.padding_side = "left"
    messages = [turns(prompt) for prompt in prompts]
    settings = dict(add_generation_prompt=True, return_dict=True, return_tensors="pt")
    batch = tokenizer.apply_chat_template(messages, padding=True, **settings)
    assert (batch["input_ids"][0, 0], batch["attention_mask"][0, 0]) == (6, 0)
    output = model.generate(**batch, max_new_tokens=8, do_sample=False, eos_token_id=None)
    for row, prompt in zip(output, messages, strict=True):
        alone = model.generate(
            **tokenizer.apply_chat_template(prompt, **settings), max_new_tokens=8, do_sample=False, eos_token_id=None
        )
        assert row[-8:].tolist() == alone[0, -8:].tolist()

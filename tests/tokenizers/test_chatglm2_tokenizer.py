"""The tokenizer of ChatGLM2 and 3 on a small vocabulary, against what the published ones gave (../shared/golden)."""

from __future__ import annotations

import json
import logging
import shutil

import golden_tokenizer as golden
import pytest
from golden_tokenizer import chat_ids, turns

from keju.tokenizers.chatglm2 import ChatGLM2Tokenizer

VERSIONS = ["chatglm2", "chatglm3"]
GMASK, SOP, EOP, EOS = 1201, 1203, 1204, 2
SYSTEM, USER, ASSISTANT = 1205, 1206, 1207


@pytest.fixture(scope="module")
def folder(shared):
    return lambda version: shared / "golden" / version / "tokenizer_tinyvocab"


@pytest.fixture
def load(folder):
    return lambda version: ChatGLM2Tokenizer.from_pretrained(folder(version), chat_format=version)


def test_texts_and_pairs_equal_the_original(load, folder):
    golden.check_texts(load("chatglm2"), folder("chatglm2"))
    assert golden.check_pairs(load("chatglm2"), folder("chatglm2"), pad_id=2) == 57
    golden.check_texts(load("chatglm3"), folder("chatglm3"), skip_decoding=("decoded_skip_special",))
    assert golden.check_pairs(load("chatglm3"), folder("chatglm3")) == 33


def test_special_tokens_are_skipped_when_asked(load, folder):
    """ChatGLM3 wrote their names all the same."""
    tokenizer = load("chatglm3")
    for record in golden.read(folder("chatglm3"), "tokenizer.jsonl"):
        decoded = tokenizer.decode(record["ids_with_special"], skip_special_tokens=True)
        if EOP not in record["ids"]:
            assert record["decoded_skip_special"] == tokenizer.decode([GMASK, SOP, *record["ids"]])
            assert decoded == record["decoded"], record
        assert not decoded.startswith("[gMASK]sop")
    assert tokenizer.decode([ASSISTANT, *tokenizer.encode("你好", add_special_tokens=False), USER]) != "你好"
    ids = [*tokenizer.encode("你好", add_special_tokens=False), USER]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "你好"


@pytest.mark.parametrize("version", VERSIONS)
def test_ids_equal_the_original(load, folder, version):
    tokenizer = load(version)
    info = json.loads((folder(version) / "tokenizer_info.json").read_text())
    assert len(tokenizer) == tokenizer.vocab_size == info["vocab_size"]
    assert tokenizer.clean_up_tokenization_spaces == info["clean_up_tokenization_spaces"]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id) == (EOS, 0, 0)
    names = ["[MASK]", "[gMASK]", "[sMASK]", "sop", "eop", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]
    known = names if version == "chatglm3" else names[:5]
    assert tokenizer.convert_tokens_to_ids(known) == list(range(1200, 1200 + len(known)))
    assert tokenizer.convert_ids_to_tokens([GMASK, SOP]) == ["[gMASK]", "sop"]
    assert set(known) <= set(tokenizer.all_special_tokens)
    vocabulary = tokenizer.get_vocab()
    assert vocabulary["eop"] == EOP and vocabulary["▁今天天气"] == 425
    assert "attention_mask" in tokenizer("你好") and "position_ids" not in tokenizer("你好")


@pytest.mark.parametrize("version", VERSIONS)
def test_what_holds_for_all_families(load, tmp_path, version):
    tokenizer = load(version)
    golden.check_fast_path(tokenizer)
    golden.check_round_trip(tokenizer, tmp_path / "saved")
    assert ChatGLM2Tokenizer.from_pretrained(tmp_path / "saved").chat_format == version
    golden.check_chats(tokenizer)
    golden.check_added_tokens(tokenizer, tmp_path / "added")


def test_broken_folders(tmp_path, folder):
    model = folder("chatglm2") / "tokenizer.model"
    golden.check_broken_folders(ChatGLM2Tokenizer, tmp_path, "tokenizer.model", model)


def test_chatglm2_conversations_equal_the_original(load, folder):
    tokenizer = load("chatglm2")
    records = json.loads((folder("chatglm2") / "chat_inputs.json").read_text(encoding="utf-8"))
    records = [record for record in records if "build_inputs" in record]
    assert len(records) == 2
    for record in records:
        asked = record["build_inputs"]
        contents = [text for pair in asked["history"] for text in pair] + [asked["query"]]
        assert chat_ids(tokenizer, turns(*contents), add_generation_prompt=True) == record["out"]["input_ids"][0]
    text = "[Round 1]\n\n问：一\n\n答：二\n\n[Round 2]\n\n问：三\n\n答："
    expected = tokenizer.encode(text)
    assert chat_ids(tokenizer, turns("一", "二", "三"), add_generation_prompt=True) == expected
    answer = tokenizer.encode("四", add_special_tokens=False)
    assert chat_ids(tokenizer, turns("一", "二", "三", "四")) == [*expected, *answer, EOS]
    assert chat_ids(tokenizer, turns("一", system="规则")) == tokenizer.encode("规则\n\n[Round 1]\n\n问：一")
    render = lambda messages, **kwargs: tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)  # noqa: E731
    assert render(turns("一", "二", "三"), add_generation_prompt=True) == "[gMASK]sop" + text
    assert render(turns("一", "二", system="规则")) == "[gMASK]sop规则\n\n[Round 1]\n\n问：一\n\n答：二</s>"
    assert render(turns("一", system="规则")) == "[gMASK]sop规则\n\n[Round 1]\n\n问：一"


def test_chatglm3_conversations_equal_the_original(load, folder):
    tokenizer = load("chatglm3")
    records = json.loads((folder("chatglm3") / "chat_inputs.json").read_text(encoding="utf-8"))
    assert len(records) == 3
    for record in records:
        asked = record["build_chat_input"]
        messages = [*asked["history"], {"role": asked["role"], "content": asked["query"]}]
        assert chat_ids(tokenizer, messages, add_generation_prompt=True) == record["out"]["input_ids"][0]
    render = lambda messages, **kwargs: tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)  # noqa: E731
    assert render(turns("一", "二", system="规则")) == "[gMASK]sop<|system|>\n规则<|user|>\n一<|assistant|>\n二</s>"
    tools = [{"name": "天气"}]
    messages = [{"role": "system", "content": "规则", "tools": tools}, *turns("一")]
    text = render(messages, add_generation_prompt=True)
    described = json.dumps(tools, indent=4, ensure_ascii=False)
    assert text == f"[gMASK]sop<|system|>\n规则\n{described}<|user|>\n一<|assistant|>"
    call = {"role": "assistant", "metadata": "weather", "content": "f()"}
    assert render([*turns("一"), call]) == "[gMASK]sop<|user|>\n一<|assistant|>weather\nf()</s>"


@pytest.mark.parametrize("version", VERSIONS)
def test_names_of_special_tokens_are_text_in_a_conversation(load, version):
    """Outside of one, a piece that is spelled `eop` is that token, as it was."""
    tokenizer = load(version)
    assert tokenizer.encode("sop eop", add_special_tokens=False)[-1] == EOP
    ids = chat_ids(tokenizer, turns("sop eop [gMASK] <|user|>"), add_generation_prompt=True)
    assert ids.count(SOP) == ids.count(GMASK) == 1 and EOP not in ids
    assert ids.count(USER) == int(version == "chatglm3")


def test_templates_are_not_followed(load, folder, tmp_path, caplog):
    shutil.copy(folder("chatglm3") / "tokenizer.model", tmp_path)
    config = {"chat_template": "{% for m in messages %}<|{{ m['role'] }}|>{% endfor %}<|observation|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with caplog.at_level(logging.WARNING):
        tokenizer = ChatGLM2Tokenizer.from_pretrained(tmp_path)
    assert "chat template is not followed" in caplog.text
    assert tokenizer.chat_format == "chatglm3"
    assert chat_ids(tokenizer, turns("一")) == chat_ids(load("chatglm3"), turns("一"))
    with pytest.raises(ValueError, match="choose a chat_format"):
        chat_ids(tokenizer, turns("一"), chat_template="{{ messages }}")


def test_the_folder_decides_the_format(folder, tmp_path, caplog):
    shutil.copy(folder("chatglm3") / "tokenizer.model", tmp_path)
    config, code = tmp_path / "tokenizer_config.json", tmp_path / "tokenization_chatglm.py"
    read = lambda: ChatGLM2Tokenizer.from_pretrained(tmp_path).chat_format  # noqa: E731
    config.write_text(json.dumps({"name_or_path": "THUDM/chatglm3-6b"}))
    with caplog.at_level(logging.WARNING):
        assert read() == "chatglm2"  # a name decides nothing
    assert "nothing tells whether this is ChatGLM2 or 3" in caplog.text
    code.write_text("raise RuntimeError('code from a checkpoint ran')\nroles = ['<|user|>', '<|observation|>']\n")
    assert read() == "chatglm3"
    code.write_text("raise RuntimeError('code from a checkpoint ran')\nroles = []\n")
    assert read() == "chatglm2"
    config.write_text(json.dumps({"additional_special_tokens": ["<|user|>", "<|observation|>"]}))
    assert read() == "chatglm3"
    token = {"content": "<|observation|>", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    config.write_text(json.dumps({"added_tokens_decoder": {"1208": {**token, "special": False}}}))
    assert read() == "chatglm3"
    config.write_text(json.dumps({"chat_format": "chatglm4"}))
    with pytest.raises(ValueError, match="chat_format chatglm4: choose from chatglm2, chatglm3"):
        read()

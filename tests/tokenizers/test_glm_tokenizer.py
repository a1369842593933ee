"""The GLM tokenizer on its real vocabulary, against what the published one gave (../shared/golden/glm)."""

from __future__ import annotations

import json
import shutil

import golden_tokenizer as golden
import pytest
from golden_tokenizer import chat_ids, turns
from safetensors.numpy import load_file

from keju.tokenizers.family import PrefixTokenizer, answer_end_id
from keju.tokenizers.glm import GLMChineseTokenizer


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "golden" / "glm"


@pytest.fixture(scope="module")
def info(folder):
    return json.loads((folder / "tokenizer_info.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def model(shared):
    return shared / "data" / "tokenizers" / "glm-chinese" / "cog-pretrain.model"


@pytest.fixture
def published(tmp_path, info, model):
    """A folder as it is published."""
    path = tmp_path / "published"
    path.mkdir()
    shutil.copy(model, path)
    (path / "added_tokens.json").write_text(json.dumps(info["added_tokens_encoder"]))
    config = {"tokenizer_class": "GLMChineseTokenizer", "add_prefix_space": False, "use_fast": False}
    config["auto_map"] = {"AutoTokenizer": ["tokenization_glm.GLMChineseTokenizer", None]}
    (path / "tokenizer_config.json").write_text(json.dumps(config | info["special_tokens_map"]))
    (path / "tokenization_glm.py").write_text("raise RuntimeError('code from a checkpoint ran')\n")
    return path


@pytest.fixture
def tokenizer(published):
    return GLMChineseTokenizer.from_pretrained(published)


def test_texts_and_pairs_equal_the_original(tokenizer, folder):
    golden.check_texts(tokenizer, folder)
    assert golden.check_pairs(tokenizer, folder) == 57


def test_ids_equal_the_original(tokenizer, info, model):
    for each in (tokenizer, GLMChineseTokenizer(str(model))):
        assert (len(each), each.vocab_size) == (info["len"], info["vocab_size"])
        assert each.added_tokens_encoder == info["added_tokens_encoder"] | {"[UNK]": 0}
        assert (each.padding_side, each.truncation_side) == ("right", "left")
        for name, index in info["ids"].items():
            if name in ("sop_token_id", "eop_token_id", "gmask_token_id", "smask_token_id"):
                continue
            assert getattr(each, name) == index, name
        extra = info["special_tokens_map"]["additional_special_tokens"]
        assert each.convert_tokens_to_ids(extra) == [50006, 50007, 50009, 50008]
        assert set(extra) <= set(each.all_special_tokens)
        assert answer_end_id(each) == 50007
    golden.check_vocabulary(tokenizer)


def test_what_holds_for_all_families(tokenizer, tmp_path):
    golden.check_fast_path(tokenizer)
    golden.check_round_trip(tokenizer, tmp_path / "saved")
    golden.check_chats(tokenizer)
    golden.check_added_tokens(tokenizer, tmp_path / "added")


def test_broken_folders(tmp_path, model):
    golden.check_broken_folders(GLMChineseTokenizer, tmp_path, "cog-pretrain.model", model)


def test_token_types_are_as_many_as_ids(tokenizer):
    output = tokenizer("今天", "天气很好", return_token_type_ids=True, return_special_tokens_mask=True)
    assert len(output["token_type_ids"]) == len(output["input_ids"]) == len(output["special_tokens_mask"])
    first = len(tokenizer.encode("今天"))
    assert output["token_type_ids"] == [0] * first + [1] * (len(output["input_ids"]) - first)
    assert output["special_tokens_mask"] == [int(index >= 50000) for index in output["input_ids"]]
    assert "token_type_ids" not in tokenizer("今天", "天气很好")


def test_openings_equal_the_inputs_that_the_original_builds(tokenizer, folder):
    assert isinstance(tokenizer, PrefixTokenizer)
    inputs = load_file(folder / "helper_inputs_real_vocab.safetensors")
    entries = {e["name"]: e for e in json.loads((folder / "helper_inputs_real_vocab.json").read_text(encoding="utf-8"))}
    for mask in ("MASK", "gMASK", "sMASK"):
        entry = entries[f"gen_{mask}"]
        ids = tokenizer(entry["prompt"], entry["prefix"])["input_ids"][1:-1]
        assert tokenizer.opening_ids(ids) == inputs[f"gen_{mask}.input_ids"][0].tolist()
    context = tokenizer.encode("今天天气怎么样？", add_special_tokens=False)
    assert tokenizer.opening_ids(context) == [50002, *context, 50009, 50000, 50006]


def test_conversations(tokenizer):
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
    question, answer = "今天天气怎么样？", "很好。"
    prompt = [50002, *encode(question), 50009, 50000, 50006]
    assert chat_ids(tokenizer, turns(question), add_generation_prompt=True) == prompt
    assert chat_ids(tokenizer, turns(question, answer)) == [*prompt, *encode(answer), 50007]
    context = encode("规则\n一\n二\n三")
    expected = [50002, *context, 50009, 50000, 50006]
    assert chat_ids(tokenizer, turns("一", "二", "三", system="规则"), add_generation_prompt=True) == expected
    text = tokenizer.apply_chat_template(turns("一", "二", "三", "四", system="规则"), tokenize=False)
    assert text == "[CLS]规则\n一\n二\n三[gMASK]<|endoftext|><|startofpiece|>四<|endofpiece|>"
    assert tokenizer.encode(text, add_special_tokens=False) == [*expected, *encode("四"), 50007]
    assert chat_ids(tokenizer, turns("[MASK]"), add_generation_prompt=True)[-3:] == [50009, 50000, 50006]


def test_a_template_of_the_users_own(tokenizer):
    tokenizer.chat_template = "{{ messages[0]['content'] }}[MASK]"
    assert chat_ids(tokenizer, turns("你好")) == [2416, 50003]
    assert chat_ids(tokenizer, turns("你好"), chat_template="[CLS]{{ messages[0]['content'] }}") == [50002, 2416]

"""The Llama tokenizer on its real vocabulary, against what transformers 4 gave (../shared/golden/llama)."""

from __future__ import annotations

import json
import shutil

import golden_tokenizer as golden
import pytest
from transformers import AutoTokenizer, LlamaTokenizer

from keju.tokenizers.llama import SentencePieceLlamaTokenizer


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "golden" / "llama"


@pytest.fixture(scope="module")
def model(shared):
    return shared / "data" / "tokenizers" / "llama" / "tokenizer.model"


@pytest.fixture
def tokenizer(model, tmp_path):
    shutil.copy(model, tmp_path)
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": True, "bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return SentencePieceLlamaTokenizer.from_pretrained(tmp_path)


def test_texts_and_pairs_equal_the_original(tokenizer, folder):
    golden.check_texts(tokenizer, folder)
    assert golden.check_pairs(tokenizer, folder) == 33


def test_ids_equal_the_original(tokenizer, folder):
    info = json.loads((folder / "tokenizer_info.json").read_text())
    assert len(tokenizer) == tokenizer.vocab_size == info["vocab_size"]
    assert tokenizer.special_tokens_map == info["special_tokens_map"] | {"pad_token": "<unk>"}
    assert not tokenizer.chat_template
    golden.check_vocabulary(tokenizer)


def test_what_holds_for_all_families(tokenizer, tmp_path):
    golden.check_fast_path(tokenizer)
    golden.check_round_trip(tokenizer, tmp_path / "saved")
    golden.check_added_tokens(tokenizer, tmp_path / "added")


def test_broken_folders(tmp_path, model):
    golden.check_broken_folders(SentencePieceLlamaTokenizer, tmp_path, "tokenizer.model", model)


def test_a_template_of_the_users_own(tokenizer):
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}"
    ids = golden.chat_ids(tokenizer, golden.turns("你好</s>"), sanitize_control_tokens=True)
    assert ids[0] == 1 and ids.count(2) == 1 and ids[-1] == 2


def test_transformers_own_class_gives_other_ids(tokenizer, tmp_path, folder):
    """Why this family exists: should it fail one day, transformers may have become equal."""
    pytest.importorskip("google.protobuf", reason="transformers reads a SentencePiece model with protobuf only")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizer", "legacy": True, "add_bos_token": True})
    )
    theirs = LlamaTokenizer.from_pretrained(tmp_path)
    records = golden.read(folder, "tokenizer.jsonl")
    different = [record["text"] for record in records if theirs.encode(record["text"]) != record["ids_with_special"]]
    assert " Hello" in different and len(different) == 13


@pytest.mark.parametrize("name", ["LlamaTokenizer", "LLaMATokenizer"])
def test_folders_choose_their_class(tokenizer, tmp_path, name):
    """A SentencePiece file alone is read as transformers 4 read it; tokenizer.json and `legacy` false as 5 does."""
    config = {"tokenizer_class": name, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert type(AutoTokenizer.from_pretrained(tmp_path)) is SentencePieceLlamaTokenizer
    if name == "LlamaTokenizer":
        pytest.importorskip("google.protobuf", reason="transformers reads a SentencePiece model with protobuf only")
        LlamaTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "rust")
        assert (tmp_path / "rust" / "tokenizer.json").is_file()
        (tmp_path / "rust" / "tokenizer_config.json").write_text(json.dumps(config))
        assert type(AutoTokenizer.from_pretrained(tmp_path / "rust")) is LlamaTokenizer
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "legacy": False}))
        assert type(AutoTokenizer.from_pretrained(tmp_path)) is LlamaTokenizer

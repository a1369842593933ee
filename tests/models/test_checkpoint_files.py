"""Folders with something wrong: one line that names the file and the key."""

from __future__ import annotations

import json
import re

import pytest
import torch
from char_tokenizer import build_char_tokenizer
from safetensors.torch import load_file, save_file
from tiny_models import BUILDERS, build_llama

from keju.models.loading import check_vocabulary, load_causal_lm, load_scalar_model, load_tokenizer, read_tokenizer

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path):
    """A tiny Llama in several shards with its tokenizer."""
    tokenizer = build_char_tokenizer()
    build_llama(vocab_size=len(tokenizer)).save_pretrained(tmp_path / "model", max_shard_size="20KB")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def index_of(folder) -> dict:
    return json.loads((folder / "model.safetensors.index.json").read_text())


def change_config(folder, **fields) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def refused(folder, *words: str, load=load_causal_lm) -> None:
    with pytest.raises(ValueError) as caught:
        load(str(folder))
    message = str(caught.value)
    assert caught.value.option and "\n" not in message
    for word in words:
        assert word in message, message


def test_a_whole_folder_loads(folder):
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    assert load_causal_lm(str(folder), tokenizer=load_tokenizer(str(folder))).dtype == torch.float32


@pytest.mark.parametrize("load", [load_causal_lm, load_scalar_model])
def test_missing_shard(folder, load):
    shard = index_of(folder)["weight_map"][UP]
    (folder / shard).unlink()
    refused(folder, "model.safetensors.index.json", shard, "is missing", load=load)


def test_shard_without_a_promised_tensor(folder):
    path = folder / index_of(folder)["weight_map"][UP]
    tensors = load_file(path)
    del tensors[UP]
    save_file(tensors, path, metadata={"format": "pt"})
    refused(folder, str(path), UP, "index")


def test_truncated_shard(folder):
    path = folder / index_of(folder)["weight_map"][UP]
    path.write_bytes(path.read_bytes()[:-10])
    refused(folder, str(path), "damaged")


def test_shape(folder):
    path = folder / index_of(folder)["weight_map"][UP]
    save_file(load_file(path) | {UP: torch.zeros(3, 32)}, path, metadata={"format": "pt"})
    refused(folder, str(folder), UP, "[3, 32]", "[64, 32]")


def test_missing_weight(folder):
    change_config(folder, num_hidden_layers=3)
    refused(folder, "lacks 9 weights", "model.layers.2.")


def test_shards_without_index(folder):
    (folder / "model.safetensors.index.json").unlink()
    refused(folder, "model.safetensors.index.json is missing", "examples/convert.sh")
    next(folder.glob("model-00002-*")).unlink()
    refused(folder, "shard 2 of ", "is missing")


def test_index(folder):
    path = folder / "model.safetensors.index.json"
    path.write_text('{"weight_map": [1]}')
    refused(folder, str(path), "weight_map")
    path.write_text('{"weight_map": {')
    refused(folder, f"{path}:1", "damaged")


def test_only_pickles(folder):
    for path in folder.glob("model*"):
        path.unlink()
    refused(folder, "no weights")
    torch.save({}, folder / "pytorch_model.bin")
    refused(folder, str(folder / "pytorch_model.bin"), "bash examples/convert.sh")


@pytest.mark.parametrize("load", [load_causal_lm, lambda name: load_causal_lm(name, from_scratch=True)])
@pytest.mark.parametrize(
    ("model_type", "words"),
    [("llama9", "model_type 'llama9' is not known"), (None, "no model_type")],
)
def test_model_type(folder, model_type, words, load):
    change_config(folder, model_type=model_type)
    refused(folder, str(folder / "config.json"), words, load=load)


def test_config_files(folder):
    (folder / "config.json").write_text('{"model_type":\n "llama"')
    refused(folder, f"{folder / 'config.json'}:2", "damaged")
    (folder / "config.json").write_text("[]")
    refused(folder, str(folder / "config.json"), "list")
    (folder / "config.json").unlink()
    refused(folder, str(folder / "config.json"), "does not exist")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("load", [load_tokenizer, read_tokenizer])
def test_damaged_tokenizer(folder, name, load):
    path = folder / name
    path.write_bytes(path.read_bytes()[:150])
    refused(folder, str(path), "damaged", load=load)


def test_tokenizer_that_is_json_but_no_tokenizer(folder):
    (folder / "tokenizer.json").write_text('{"model": {}}')
    refused(folder, str(folder), "no tokenizer loads", load=load_tokenizer)


def test_tokenizer_larger_than_the_embedding(folder):
    tokenizer = build_char_tokenizer(more="成语：。解释“”的意思\n多出来")
    rows = load_causal_lm(str(folder)).get_input_embeddings().num_embeddings
    assert len(tokenizer) == rows + 3
    with pytest.raises(ValueError, match=f"^tokenizer_name: the token '.' has id {rows + 2}.* has {rows} rows"):
        load_causal_lm(str(folder), tokenizer=tokenizer)


@pytest.mark.parametrize("family", BUILDERS)
def test_vocabularies_of_all_families(family):
    tokenizer = build_char_tokenizer()
    check_vocabulary(BUILDERS[family](vocab_size=len(tokenizer)), tokenizer)
    with pytest.raises(ValueError, match="rows"):
        check_vocabulary(BUILDERS[family](vocab_size=len(tokenizer) - 1), tokenizer)


def test_code_in_a_folder_is_never_run(folder, tmp_path):
    mark = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Config: pass\nModel = Tokenizer = Config")
    mapped = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    change_config(folder, auto_map=mapped)
    load_causal_lm(str(folder))
    change_config(folder, model_type="evil")
    refused(folder, "model_type 'evil'")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}
    path.write_text(json.dumps(config))
    load_tokenizer(str(folder))
    assert not mark.exists()


def test_published_folders_pass(shared):
    """Old config.json files lack a model_type, or have one that several architectures share."""
    for path in sorted((shared / "golden").glob("*/config.json")):
        assert re.search("For", type(load_causal_lm(str(path.parent))).__name__)

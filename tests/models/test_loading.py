"""What is in a checkpoint and not in its model, and configurations without a model_type."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from keju.models.loading import load_causal_lm, load_scalar_model

SIZE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.fixture
def folder(tmp_path):
    LlamaForCausalLM(LlamaConfig(**SIZE)).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(folder, fields: dict, tensors: dict | None = None) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    if tensors:
        state = load_file(folder / "model.safetensors") | tensors
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def test_weights_without_a_place_are_refused(folder):
    change(folder, {}, {"model.layers.0.self_attn.q_proj.bias": torch.ones(32)})
    with pytest.raises(ValueError, match="has no place for 1 of its weights, first model.layers.0.self_attn.q_proj.bi"):
        load_causal_lm(str(folder))


def test_fewer_layers_than_the_files_hold_are_refused(folder):
    change(folder, {"num_hidden_layers": 1})
    with pytest.raises(ValueError, match="has no place for 9 of its weights, first model.layers.1"):
        load_causal_lm(str(folder))
    with pytest.raises(ValueError, match="has no place for 9 of its weights"):
        load_scalar_model(str(folder))


def test_constants_of_older_files_are_listed(folder, capsys):
    change(folder, {}, {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    load_causal_lm(str(folder))


def test_masks_of_gpt2_are_no_weights(tmp_path):
    GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=1, n_head=4)).save_pretrained(tmp_path)
    change(tmp_path, {}, {"transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8)})
    load_causal_lm(str(tmp_path))


def test_the_head_of_another_purpose_is_left_out_and_said(folder, capsys):
    load_scalar_model(str(folder))
    assert "left out lm_head.weight, which LlamaForSequenceClassification does without" in capsys.readouterr().out


def test_scaled_numbers_are_refused(folder):
    state = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(state | {name: state[name].to(torch.float8_e4m3fn)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=f"{name} holds quantised numbers .F8_E4M3."):
        load_causal_lm(str(folder))


@pytest.mark.parametrize("place", ["../model.safetensors", "/etc/model.safetensors", "a/model.safetensors", ".."])
def test_shards_lie_in_the_folder(folder, place):
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, place)}))
    with pytest.raises(ValueError, match="must lie in the same folder"):
        load_causal_lm(str(folder))


HEADERS = {
    "huge": (2**60).to_bytes(8, "little") + b"{}",
    "beyond": b'{"a":{"dtype":"F32","shape":[1000000],"data_offsets":[0,4000000]}}',
    "overlapping": b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
    b'"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
    "overflowing": b'{"a":{"dtype":"F32","shape":[9223372036854775807,9],"data_offsets":[0,4]}}',
    "negative": b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
    "no text": b"\xff\xfe\xfd",
}


@pytest.mark.parametrize("kind", HEADERS)
def test_headers_that_lie(folder, kind):
    header = HEADERS[kind]
    if kind != "huge":
        header = len(header).to_bytes(8, "little") + header + bytes(4)
    (folder / "model.safetensors").write_bytes(header)
    with pytest.raises(ValueError, match="model.safetensors: damaged") as caught:
        load_causal_lm(str(folder))
    assert "\n" not in str(caught.value)


def test_a_qwen_configuration_without_model_type(tmp_path):
    fields = {"padded_vocab_size": 128, "ffn_hidden_size": 96, "kv_channels": 8, "n_embd": 32, "n_layer": 1,
              "n_head": 4, "vocab_size": 128, "use_dynamic_ntk": False, "no_bias": True}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert AutoConfig.from_pretrained(tmp_path).model_type == "qwen"
    (tmp_path / "config.json").write_text(json.dumps(SIZE | {"max_sequence_length": 64, "padded_vocab_size": 128}))
    with pytest.raises(ValueError, match="model_type"):
        load_causal_lm(str(tmp_path))


def test_adapters_whose_base_is_on_the_hub_say_so(tmp_path, capsys):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "no-such/base"}))
    with pytest.raises(ValueError):
        load_causal_lm(str(tmp_path))
    assert "is no-such/base, which is no folder here; asking the hub for it" in capsys.readouterr().out

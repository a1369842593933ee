"""What a configuration alone says about token trees, sizes and the meaning of numbers."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig

from keju.models.architecture import check_layers, check_modules, row_limit, without_weights
from keju.models.backbone import tree_logprobs
from keju.models.configurations import check_model, check_rows
from keju.models.loading import load_causal_lm
from keju.trees.packed_batch import PackedBatch
from keju.trees.segment import Segment

SIZE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
REFUSED = {
    "qwen3_next": ({"layer_types": ["linear_attention", "full_attention"]}, "kind linear_attention carry a state"),
    "lfm2": ({"layer_types": ["conv", "full_attention"]}, "kind conv carry a state"),
    "mamba": ({"state_size": 8}, "carry a state"),
    "rwkv": ({"attention_hidden_size": 32}, "kind RwkvBlock carry a state"),
    "gemma2": ({}, "cap attention scores"),
    "gpt_oss": ({"num_local_experts": 2}, "GptOssAttention attend to learned sinks"),
    "deepseek_v32": (
        {"q_lora_rank": 16, "kv_lora_rank": 16, "index_topk": 8, "num_key_value_heads": 4},
        "which tokens they attend to|sparse attention",
    ),
}


def folder_of(config: dict, path) -> str:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("model_type", REFUSED)
def test_kinds_of_layers_are_refused(model_type):
    fields, named = REFUSED[model_type]
    config = AutoConfig.for_model(model_type, **SIZE | fields)
    with pytest.raises(ValueError, match=named) as caught:
        check_layers(config)
        check_modules(without_weights(AutoModelForCausalLM, config))
    assert "\n" not in str(caught.value)


def test_refused_before_the_weights_load(tmp_path):
    name = folder_of({"model_type": "qwen3_next", **SIZE, "layer_types": ["linear_attention"] * 2}, tmp_path / "m")
    with pytest.raises(ValueError, match="model_name_or_path: .*kind linear_attention carry a state"):
        check_model(name)
    with pytest.raises(ValueError, match="kind linear_attention carry a state"):
        load_causal_lm(name)


def test_rows_and_not_models_are_refused_for_windows(tmp_path):
    config = MistralConfig(**SIZE, sliding_window=16)
    assert row_limit(config).length == 16
    assert row_limit(LlamaConfig(**SIZE, sliding_window=16)) is None  # a field that means nothing to it
    name = folder_of(config.to_dict(), tmp_path / "m")
    check_rows(name, 16)
    with pytest.raises(ValueError, match="^max_length: rows of up to 17 tokens, but its layers of kind sliding_att"):
        check_rows(name, 17)


@torch.no_grad()
def test_a_row_longer_than_the_window_is_refused_in_a_pass():
    model = AutoModelForCausalLM.from_config(MistralConfig(**SIZE, sliding_window=8), attn_implementation="keju")
    short, long = Segment(list(range(5, 10)), True), Segment(list(range(5, 15)), True)
    assert len(tree_logprobs(model, PackedBatch.from_trees([short, short, short])).logprobs) == 12
    with pytest.raises(ValueError, match="in token trees rows have at most 8"):
        tree_logprobs(model, PackedBatch.from_trees([short, long]))


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rotary_positions_that_follow_the_length_limit_rows(kind):
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 64}
    limit = row_limit(LlamaConfig(**SIZE, rope_parameters=rope))
    assert limit.length == (256 if kind == "dynamic" else 64)


@pytest.mark.parametrize("method", ["fp8", "gptq", "awq", "bitsandbytes", "compressed-tensors"])
def test_quantised_folders_are_refused(tmp_path, method):
    config = {"model_type": "llama", **SIZE, "quantization_config": {"quant_method": method, "bits": 4}}
    with pytest.raises(ValueError, match=f"quantised \\({method}\\)"):
        check_model(folder_of(config, tmp_path / "m"))


@pytest.mark.parametrize(("file", "method"), [("quantize_config.json", "gptq"), ("quant_config.json", "awq")])
def test_older_quantised_folders_are_refused(tmp_path, file, method):
    """config.json says nothing of it."""
    folder = folder_of({"model_type": "llama", **SIZE}, tmp_path / "m")
    (tmp_path / "m" / file).write_text('{"bits": 4}')
    with pytest.raises(ValueError, match=f"quantised \\({method}\\)"):
        check_model(folder)


@pytest.mark.parametrize(
    "architecture",
    [("minicpm", "modeling_minicpm.MiniCPMForCausalLM"), ("somebody", "modeling_somebody.SomebodyForCausalLM")],
)
def test_models_that_are_code_of_their_own_are_refused(tmp_path, architecture):
    kind, code = architecture
    auto_map = {"AutoConfig": f"configuration_{kind}.Config", "AutoModelForCausalLM": code}
    config = {"model_type": kind, **SIZE, "auto_map": auto_map, "scale_emb": 12, "dim_model_base": 256}
    folder = folder_of(config, tmp_path / "m")
    (tmp_path / "m" / f"modeling_{kind}.py").write_text("raise RuntimeError('code from a checkpoint ran')\n")
    with pytest.raises(
        ValueError, match=f"model_type '{kind}' is not known: the model is Python .* {code}, .*never run"
    ):
        check_model(folder)


@pytest.mark.parametrize(
    "field", [{"num_hidden_layers": 10**9}, {"vocab_size": 10**15}, {"hidden_size": 2**40}, {"intermediate_size": -5}]
)
def test_absurd_sizes_are_refused_before_they_are_allocated(tmp_path, field):
    folder = tmp_path / "m"
    LlamaForCausalLM(LlamaConfig(**SIZE)).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) | field
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="^model_name_or_path: ") as caught:
        load_causal_lm(str(folder))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError):
        load_causal_lm(str(folder), from_scratch=True)


def test_a_large_model_that_the_files_do_not_hold(tmp_path):
    folder = tmp_path / "m"
    LlamaForCausalLM(LlamaConfig(**SIZE)).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": 10**9}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="config.json describes .* weights, but the files hold"):
        load_causal_lm(str(folder))

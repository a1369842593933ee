"""What was saved is read back: every name, shape, dtype and bit."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import BUILDERS
from transformers import AutoConfig, AutoModelForCausalLM

from keju.models.saved_weights import NotAsSaved, verify_saved

MOE = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
}  # fmt: skip


@pytest.mark.parametrize("family", BUILDERS)
def test_what_was_saved_passes(family, tmp_path):
    model = BUILDERS[family]()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    verify_saved(model, tmp_path)
    verify_saved(model, tmp_path, {name: tensor.clone() for name, tensor in model.state_dict().items()})


def test_merged_experts_and_tied_weights(tmp_path):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3_moe", **MOE, tie_word_embeddings=True))
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    verify_saved(model, tmp_path)


def test_adapters(tmp_path):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(BUILDERS["llama"](), LoraConfig(task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path)
    verify_saved(model, tmp_path)
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "lora_A" in n)[0, 0] += 1
    with pytest.raises(NotAsSaved, match="adapter_model.safetensors: .*lora_A.* reads back as something else"):
        verify_saved(model, tmp_path)


def test_each_difference_is_named(tmp_path):
    model = BUILDERS["llama"]()
    model.save_pretrained(tmp_path)
    path, name = tmp_path / "model.safetensors", "model.layers.1.mlp.up_proj.weight"
    state = load_file(path)

    def saved(changed: dict) -> None:
        save_file(changed, path, metadata={"format": "pt"})

    flipped = state[name].clone()
    flipped.view(torch.int32)[3, 5] ^= 1
    for wrong in (flipped, state[name].half(), state[name][:-1].clone()):
        saved(state | {name: wrong})
        with pytest.raises(NotAsSaved, match=f"{name} reads back as something else"):
            verify_saved(model, tmp_path)
    saved({key: tensor for key, tensor in state.items() if key != name})
    with pytest.raises(NotAsSaved, match=f"{name} was not saved"):
        verify_saved(model, tmp_path)
    saved(state | {"more": torch.ones(1)})
    with pytest.raises(NotAsSaved, match="more was saved, but the model has no such weight"):
        verify_saved(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama"


def test_numbers_that_are_not_finite_are_equal_to_themselves(tmp_path):
    model = BUILDERS["llama"]()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")
    model.save_pretrained(tmp_path)
    verify_saved(model, tmp_path)

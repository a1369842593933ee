"""The proof at the start of a run: what differs between trees and single rows is refused, and nothing else changes."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import BUILDERS
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from keju.models import attention, backbone
from keju.training.tree_guard import verify_trees

SIZE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
    "layer_types": ["linear_attention", "full_attention"],
}
REFUSED = {
    "qwen3_5_text": (SIZE | LINEAR, "layers of kind Qwen3_5GatedDeltaNet compute other log-probabilities"),
    "lfm2": (SIZE | {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3}, "Lfm2ShortConv"),
    "bart": (
        {"vocab_size": 97, "d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64},
        "BartAttention",
    ),
    "codegen": ({"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 8}, "CodeGenAttention"),
    "bloom": ({"vocab_size": 97, "hidden_size": 32, "n_layer": 2, "n_head": 4}, "does not compute token trees .Bloom"),
    "mpt": ({"vocab_size": 97, "d_model": 32, "n_layers": 2, "n_heads": 4}, "MptAttention"),
    "modernbert-decoder": (SIZE, "ModernBertDecoderForCausalLM: it computes other log-probabilities"),
}


def build(model_type: str, fields: dict, auto_class=AutoModelForCausalLM) -> nn.Module:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **fields)
    model = auto_class.from_config(config, attn_implementation=attention.NAME).float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("model_type", REFUSED)
def test_other_numbers_over_trees_are_refused(model_type):
    fields, named = REFUSED[model_type]
    model = build(model_type, fields)
    with pytest.raises(ValueError, match=f"^model_name_or_path: .*{named}") as caught:
        verify_trees(model)
    assert "\n" not in str(caught.value)
    assert model.config._attn_implementation == attention.NAME
    assert model.training


@pytest.mark.parametrize("model_type", ["mistral", "gemma3_text", "olmo3"])
def test_windows_longer_than_the_rows_are_computed(model_type):
    verify_trees(build(model_type, SIZE | {"sliding_window": 24}), gradients=True)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rotary_positions_that_follow_the_length(kind):
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 24}
    fields = SIZE | {"rope_parameters": rope, "max_position_embeddings": 24}
    verify_trees(build("llama", fields), gradients=True)


@pytest.mark.parametrize("family", BUILDERS)
def test_scalar_models(family):
    model = BUILDERS[family]()
    scalar = AutoModelForSequenceClassification.from_config(model.config, attn_implementation=attention.NAME)
    verify_trees(scalar, gradients=True)


@pytest.mark.parametrize("positions", [4, 7, 12])
def test_models_of_few_positions(positions):
    verify_trees(build("llama", SIZE | {"max_position_embeddings": positions}), gradients=True)


def test_a_vocabulary_of_special_tokens_alone():
    verify_trees(build("llama", SIZE | {"vocab_size": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}))


def test_half_precision():
    verify_trees(build("qwen3", SIZE).to(torch.bfloat16), gradients=True)


def test_wrong_gradients_are_refused():
    class Halved(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient / 2

    model = build("llama", SIZE)

    def halve(module, args, output):
        ours = module.config._attn_implementation == attention.NAME
        return (Halved.apply(output[0]), *output[1:]) if ours else output

    model.model.layers[1].self_attn.register_forward_hook(halve)
    verify_trees(model)
    with pytest.raises(ValueError, match="other gradients over token trees"):
        verify_trees(model, gradients=True)


def test_weights_that_are_broken():
    model = build("llama", SIZE)
    with torch.no_grad():
        model.lm_head.weight[5, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite; its weights are broken"):
        verify_trees(model)


def test_adapters_take_part_and_stay_as_they_are():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(build("llama", SIZE), LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    before = copy.deepcopy(model.state_dict())
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    seen = []
    layer = model.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"]
    layer.register_forward_hook(lambda module, args, output: seen.append(output.abs().max().item()))
    verify_trees(model, gradients=True)
    assert min(seen) > 0
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trained
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["lm_head", "q_proj"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
    ids=["adapters", "copy"],
)
def test_a_head_that_is_passed_by_is_seen(monkeypatch, settings):
    """As log-probabilities were computed: from the head's own weight, as if nothing were trained beside it."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(build("llama", SIZE), LoraConfig(task_type="CAUSAL_LM", **settings))
    verify_trees(model, gradients=True)

    def own_weight(model, hidden):
        head = backbone.unwrapped(model).lm_head
        weight = getattr(head, "base_layer", getattr(head, "original_module", None)).weight
        return backbone._Head(hidden, weight, None, {"scale": 1.0, "softcap": None})

    monkeypatch.setattr(backbone, "_head", own_weight)
    with pytest.raises(ValueError, match="it computes other log-probabilities over token trees"):
        verify_trees(model, gradients=True)


@pytest.mark.parametrize(
    ("settings", "part", "leaf"),
    [
        ({"target_modules": ["embed_tokens"]}, "embed_tokens", "lora_embedding_B"),
        ({"target_modules": ["q_proj"], "use_dora": True}, "layers.0.self_attn.q_proj", "lora_magnitude_vector"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, "embed_tokens", "modules_to_save"),
    ],
    ids=["embedding", "lengths", "copy"],
)
def test_all_that_is_trained_takes_part(settings, part, leaf):
    """What starts as if it were not there is something else while numbers are compared."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(build("llama", SIZE), LoraConfig(task_type="CAUSAL_LM", **settings))
    layer = model.base_model.model.model.get_submodule(part)
    (idle,) = (parameter for name, parameter in layer.named_parameters() if leaf in name)
    before, during = idle.detach().clone(), []
    layer.register_forward_hook(lambda *_: during.append(not torch.equal(idle, before)))
    verify_trees(model, gradients=True)
    assert during and all(during)
    assert torch.equal(idle, before) and idle.requires_grad

"""Each family as a class of transformers: the published outputs, the way there and back, and what is refused."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import BUILDERS, build
from transformers import AutoConfig, AutoModelForCausalLM

from keju.conversion.pair import Converted
from keju.conversion.targets import find_pair
from keju.conversion.verification import largest_difference, sample_logits
from keju.models import attention

WAYS = {
    "baichuan-7B": ("llama", "baichuan"),
    "baichuan2-7B": ("llama", "baichuan"),
    "qwen": ("qwen2", "qwen"),
    "chatglm2": ("glm", "chatglm"),
    "internlm": ("llama", "internlm"),
    "xverse": ("llama", "xverse"),
}
GOLDEN = {"baichuan-7B": "llama", "qwen": "qwen2", "chatglm2": "glm", "chatglm3": "glm"}


def convert(model, to: str):
    """`model` as a `to`, in memory."""
    pair, forward = find_pair(model.config, to)
    config = pair.to_theirs(model.config) if forward else pair.to_ours(model.config)
    target = AutoModelForCausalLM.from_config(config, attn_implementation=attention.NAME)
    ours, theirs = (model.config, config) if forward else (config, model.config)
    tensors = Converted(model.state_dict(), list(target.state_dict()), pair, ours=ours, theirs=theirs, forward=forward)
    target.load_state_dict(dict(tensors))
    assert not tensors.unused()
    return target.eval()


@pytest.mark.parametrize("family", WAYS)
def test_there_and_back(family):
    model = BUILDERS[family]()
    there, back = WAYS[family]
    logits = sample_logits(model, 97)
    converted = convert(model, there)
    assert type(converted).__module__.startswith("transformers.")
    assert largest_difference(logits, sample_logits(converted, 97)) <= 1e-5 * logits.abs().max()
    returned = convert(converted, back)
    assert type(returned) is type(model)
    assert largest_difference(logits, sample_logits(returned, 97)) <= 1e-5 * logits.abs().max()
    state = returned.state_dict()
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, state[name])]
    assert changed == (["lm_head.weight"] if family == "baichuan2-7B" else [])


@pytest.mark.parametrize("name", GOLDEN)
@torch.no_grad()
def test_the_published_outputs(shared, name):
    folder = shared / "golden" / name
    golden = load_file(folder / "golden.safetensors")
    converted = convert(AutoModelForCausalLM.from_pretrained(folder), GOLDEN[name])
    logits = converted(input_ids=golden["basic.input_ids"]).logits
    torch.testing.assert_close(logits, golden["basic.logits"], atol=1e-4, rtol=1e-4)


def test_half_precision_norm_heads_are_not_rounded():
    model = BUILDERS["baichuan2-7B"]().bfloat16()
    pair, forward = find_pair(model.config, "llama")
    tensors = Converted(
        model.state_dict(),
        ["lm_head.weight", "model.norm.weight"],
        pair,
        ours=model.config,
        theirs=pair.to_theirs(model.config),
        forward=forward,
    )
    head = tensors["lm_head.weight"]
    assert head.dtype == torch.float32 and tensors["model.norm.weight"].dtype == torch.bfloat16
    rounded = model.lm_head.effective_weight().float()
    assert torch.equal(head, model.float().lm_head.effective_weight())
    # In bfloat16 the NormHead divides by a length that is rounded, too.
    assert (head.bfloat16() - head).abs().max() < (rounded - head).abs().max() < 0.01


def test_qwen_is_exact_up_to_its_seq_length():
    model = build("qwen", seq_length=16)
    converted = convert(model, "qwen2")
    assert converted.config.max_position_embeddings == 16
    ids = torch.randint(97, (1, 17), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(converted(ids[:, :16]).logits, model(ids[:, :16]).logits, atol=1e-4, rtol=1e-4)
        assert (converted(ids).logits - model(ids).logits).abs().max() > 1e-2


@pytest.mark.parametrize("biased", [True, False])
def test_chatglm_with_and_without_bias(biased):
    model = build("chatglm2", add_qkv_bias=biased)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module.bias is not None:
            torch.nn.init.normal_(module.bias)
    converted = convert(model, "glm")
    assert converted.config.attention_bias is biased
    largest_difference(sample_logits(model, 97), sample_logits(converted, 97))


@pytest.mark.parametrize(
    ("family", "fields", "to", "words"),
    [
        ("baichuan-13B", {}, "llama", "ALiBi"),
        ("baichuan2-7B", {"tie_word_embeddings": True}, "llama", "tie_word_embeddings is True"),
        ("chatglm", {}, "glm", "both directions"),
        ("glm", {}, "glm", "both directions"),
        ("pangu", {}, "llama", "query of its own"),
        ("qwen", {"no_bias": False}, "qwen2", "no_bias is False, but Qwen2 has only True"),
        ("qwen", {}, "llama", "QWen to qwen2"),
        ("chatglm2", {"add_bias_linear": True}, "glm", "add_bias_linear is True"),
        ("llama", {}, "baichuan", "num_key_value_heads is 2, but Baichuan has only 4"),
        ("llama", {"num_key_value_heads": 4, "attention_bias": True}, "baichuan", "attention_bias"),
        ("llama", {"num_key_value_heads": 4, "rope_theta": 5e5}, "baichuan", "rope_parameters"),
        ("llama", {"mlp_bias": True}, "internlm", "mlp_bias is True, but InternLM has only False"),
        ("llama", {"num_key_value_heads": 4, "rope_theta": 5e5}, "xverse", "rope_parameters"),
    ],
)
def test_what_has_no_exact_equal(family, fields, to, words):
    with pytest.raises(ValueError, match=words):
        convert(build(family, **fields), to)


@pytest.mark.parametrize(
    ("model_type", "fields", "to", "words"),
    [
        ("qwen2", {"num_key_value_heads": 1, "num_attention_heads": 4, "hidden_size": 32}, "qwen", "num_key_value"),
        ("qwen2", {"use_sliding_window": True}, "qwen", "use_sliding_window"),
        ("glm", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, "chatglm", "rope_parameters"),
    ],
)
def test_what_cannot_go_back(model_type, fields, to, words):
    config = AutoConfig.for_model(model_type, **fields)
    pair, forward = find_pair(config, to)
    assert not forward
    with pytest.raises(ValueError, match=words):
        pair.to_ours(config)


def test_a_missing_tensor_is_named():
    model = BUILDERS["baichuan-7B"]()
    state = model.state_dict()
    del state["model.layers.1.self_attn.W_pack.weight"]
    pair, forward = find_pair(model.config, "llama")
    name = "model.layers.1.self_attn.k_proj.weight"
    tensors = Converted(state, [name], pair, ours=model.config, theirs=pair.to_theirs(model.config), forward=forward)
    with pytest.raises(ValueError, match=f"lacks model.layers.1.self_attn.W_pack.weight, which {name}"):
        tensors[name]
    assert "model.norm.weight" in tensors.unused()

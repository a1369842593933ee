"""Llama and what users load as derived from it, with the classes of transformers: trees equal padded rows, LoRA fits.

Trees against rows one by one is in test_any_causal_lm.py for the other classes; here also for the variants of Llama.
"""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, Glm4Config, GlmConfig, LlamaConfig, Qwen2Config, Qwen3Config

from keju.models import attention
from keju.models.backbone import tree_logprobs
from keju.models.llama_derived import InternLMConfig, XverseConfig
from keju.training.tree_guard import verify_trees
from keju.trees.packed_batch import PackedBatch
from keju.trees.segment import Segment

PAD = 3
SIZE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": PAD,
}
# As published in config.json files; with this original length the longest row reaches every band of frequencies.
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LLAMA = {
    "llama": LlamaConfig(**SIZE),
    "llama, tied": LlamaConfig(**SIZE, tie_word_embeddings=True),
    "llama, rope llama3": LlamaConfig(**SIZE, rope_scaling=LLAMA3_SCALING),
    "llama, rope linear": LlamaConfig(**SIZE, rope_scaling={"type": "linear", "factor": 4.0}),
    "internlm": InternLMConfig(**SIZE),
    "xverse": XverseConfig(**SIZE | {"intermediate_size": 84}),
    "deepseek, dense": LlamaConfig(**SIZE | {"num_key_value_heads": 4}, rope_theta=500.0, rms_norm_eps=1e-6),
}
OTHERS = {
    "qwen2": Qwen2Config(**SIZE),
    "qwen2, tied": Qwen2Config(**SIZE, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZE, head_dim=8),
    "glm": GlmConfig(**SIZE, head_dim=8),
    "glm4": Glm4Config(**SIZE, head_dim=8),
}
# peft 0.21 has no default for this class: there target_modules must be given.
WITHOUT_LORA_DEFAULTS = ("glm4",)

PROMPT, ANSWERS = [1, 10, 11, 12, 13], [[20, 21, 2], [30, 2], [20, 40, 41, 42, 2]]
OTHER = [1, *range(50, 80)]
ROWS = [*((PROMPT + ids, len(PROMPT)) for ids in ANSWERS), (OTHER, 1)]


def build(name: str):
    torch.manual_seed(0)
    config = (LLAMA | OTHERS)[name]
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention.NAME).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # biases start at 0, norms at 1: neither would show
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def batch() -> PackedBatch:
    trees = [Segment(PROMPT, branches=[Segment(ids, True) for ids in ANSWERS]), Segment(OTHER, True)]
    return PackedBatch.from_trees(trees)


def row_logprobs(model, padding_side: str) -> torch.Tensor:
    """Of the trained tokens of ROWS, as one padded batch."""
    width = max(len(row) for row, _ in ROWS)
    ids, mask = torch.full((len(ROWS), width), PAD), torch.zeros(len(ROWS), width, dtype=torch.long)
    places = []
    for index, (row, _) in enumerate(ROWS):
        places.append(slice(width - len(row), width) if padding_side == "left" else slice(len(row)))
        ids[index, places[-1]] = torch.tensor(row)
        mask[index, places[-1]] = 1
    logits = model(input_ids=ids, attention_mask=mask).logits
    found = []
    for index, (row, start) in enumerate(ROWS):
        logprobs = logits[index, places[index]][:-1].log_softmax(-1)
        found.append(logprobs.gather(-1, torch.tensor(row[1:])[:, None])[start - 1 :, 0])
    return torch.cat(found)


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("name", LLAMA | OTHERS)
@torch.no_grad()
def test_trees_equal_padded_rows(name, padding_side):
    model = build(name)
    verify_trees(model, gradients=True)
    ours = tree_logprobs(model, batch()).logprobs
    torch.testing.assert_close(ours, row_logprobs(model, padding_side), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", LLAMA)
@torch.no_grad()
def test_trees_equal_rows_one_by_one(name):
    model = build(name)
    expected = []
    for row, start in ROWS:
        ids = torch.tensor([row])
        logprobs = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        expected.append(logprobs[start - 1 :])
    torch.testing.assert_close(tree_logprobs(model, batch()).logprobs, torch.cat(expected), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(set(LLAMA) - {"llama"}))
@torch.no_grad()
def test_each_variant_of_llama_computes_something_else(name):
    """Else the cases above would be one case."""
    plain, variant = (tree_logprobs(build(which), batch()).logprobs for which in ("llama", name))
    assert (plain - variant).abs().max() > 1e-2


@pytest.mark.parametrize("targets", [None, "all-linear"])
@pytest.mark.parametrize("name", LLAMA | OTHERS)
def test_lora_attaches(name, targets):
    """To peft's default targets, and to all linear layers, which is the default of our stages."""
    peft = pytest.importorskip("peft")
    base = build(name)
    with torch.no_grad():
        before = tree_logprobs(base, batch()).logprobs
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=targets, init_lora_weights=False)
    if targets is None and name in WITHOUT_LORA_DEFAULTS:
        with pytest.raises(ValueError, match="target_modules"):
            peft.get_peft_model(base, lora)
        return
    model = peft.get_peft_model(base, lora).eval()
    logprobs = tree_logprobs(model, batch()).logprobs
    assert (logprobs - before).abs().max() > 1e-3
    with torch.no_grad():
        torch.testing.assert_close(logprobs, row_logprobs(model, "left"), atol=2e-5, rtol=1e-5)
    logprobs.sum().backward()
    names = [key for key, parameter in model.named_parameters() if parameter.grad is not None]
    trained = {key.split(".lora_")[0].split(".")[-1] for key in names}
    assert trained >= {"q_proj", "v_proj"}
    assert ("o_proj" in trained) == (targets == "all-linear")
    assert "lm_head" not in trained

"""Causal language models of transformers beside Llama get token trees without a change."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from keju.models import attention
from keju.models.backbone import tree_logprobs
from keju.training.tree_guard import verify_trees
from keju.trees.packed_batch import PackedBatch
from keju.trees.segment import Segment

SIZE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "pad_token_id": 3,
}
MODELS = {
    "qwen2": SIZE,
    "qwen3": SIZE | {"head_dim": 8},
    "glm4": SIZE | {"head_dim": 8},
    "glm": SIZE | {"head_dim": 8},
    "olmo2": SIZE,
    "granite": SIZE | {"logits_scaling": 4.0},
    "cohere": SIZE | {"logit_scale": 0.25},
    "gpt2": {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.2},
}


@pytest.mark.parametrize("model_type", MODELS)
def test_tree_equals_rows(model_type):
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **MODELS[model_type])
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention.NAME).float().eval()
    prompt, answers = [1, 10, 11, 12, 13], [[20, 21, 2], [30, 2], [20, 40, 41, 42, 2]]
    verify_trees(model, gradients=True)
    trees = [Segment(prompt, branches=[Segment(ids, True) for ids in answers]), Segment([1, 50, 51], True)]
    with torch.no_grad():
        ours = tree_logprobs(model, PackedBatch.from_trees(trees)).logprobs
        expected = []
        for row, start in [*((prompt + ids, len(prompt)) for ids in answers), ([1, 50, 51], 1)]:
            ids = torch.tensor([row])
            logprobs = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
            expected.append(logprobs[start - 1 :])
    torch.testing.assert_close(ours, torch.cat(expected), rtol=1e-5, atol=2e-5)


@torch.no_grad()
def test_rows_longer_than_a_sliding_window_are_refused():
    config = AutoConfig.for_model("mistral", **SIZE, sliding_window=16)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention.NAME)
    tree_logprobs(model, PackedBatch.from_trees([Segment(list(range(16)), True)] * 2))
    with pytest.raises(ValueError, match="layers of kind sliding_attention see 16 tokens"):
        tree_logprobs(model, PackedBatch.from_trees([Segment(list(range(17)), True)]))

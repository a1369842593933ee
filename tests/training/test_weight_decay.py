"""Matrices decay; norms, biases and embeddings of any family do not."""

from __future__ import annotations

import pytest
import torch
from tiny_models import BUILDERS, IDS, build, build_llama, build_scalar_model
from transformers import AutoConfig, AutoModelForCausalLM, TrainingArguments

from keju.rl.learners import Learner, LearnerSettings
from keju.training.adapters import add_lora
from keju.training.objectives.language_model import LanguageModelObjective
from keju.training.tree_trainer import TreeTrainer
from keju.training.weight_decay import decay_groups, decayed_names
from keju.trees.segment import Segment

SIZE = {
    **IDS, "vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
OTHERS = {
    "qwen2": {**SIZE, "tie_word_embeddings": True},
    "qwen3": {**SIZE, "head_dim": 8},
    "cohere": {**SIZE, "use_qk_norm": True},  # its norms of queries have a row for each head
    "gemma2": {**SIZE, "head_dim": 8},
    "mixtral": {**SIZE, "num_local_experts": 2},
    "opt": {**SIZE, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "gpt2": {**IDS, "vocab_size": 97, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64},
}


def model_of(name: str) -> torch.nn.Module:
    return (
        build(name)
        if name in BUILDERS
        else AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **OTHERS[name]))
    )


@pytest.mark.parametrize("name", [*BUILDERS, *OTHERS])
def test_matrices_decay_and_nothing_else(name):
    """The layers' matrices, and an LM head of its own: by names that are read here by eye."""
    model = model_of(name)
    decayed = set(decayed_names(model))
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    for key, parameter in model.named_parameters():
        owner = model.get_submodule(key.rpartition(".")[0])
        is_norm = type(owner).__name__.lower().endswith("norm")
        spared = key.endswith("bias") or is_norm or id(parameter) in embeddings
        assert (key in decayed) != spared, f"{key} of {type(owner).__name__}, {list(parameter.shape)}"
    head = model.get_output_embeddings().weight
    assert any(parameter is head for key, parameter in model.named_parameters() if key in decayed) == (
        id(head) not in embeddings
    )


def test_adapters_decay():
    model = add_lora(build("qwen"), task_type="CAUSAL_LM", r=4, alpha=8, use_dora=True)
    groups = decay_groups(model, weight_decay=0.5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    kinds = [{names[id(p)].split(".lora_")[1].split(".")[0] for p in group["params"]} for group in groups]
    assert kinds == [{"A", "B"}, {"magnitude_vector"}] and [group["weight_decay"] for group in groups] == [0.5, 0.0]


def test_trainers_leave_norms_alone(tmp_path):
    """A step of weight decay without a gradient: what decays shrinks, what does not stays."""
    settings = {"use_cpu": True, "report_to": "none", "remove_unused_columns": False, "disable_tqdm": True}
    args = TrainingArguments(
        str(tmp_path), learning_rate=1e-9, weight_decay=1e8, max_steps=1, save_strategy="no", warmup_steps=0, **settings
    )
    for name in ("qwen", "llama"):
        model = build(name)
        before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
        TreeTrainer(
            model, LanguageModelObjective(), args, [Segment([1, 7, 8, 9], trained=True)], token_budget=64
        ).train()
        assert_decayed(model, before, 0.1)


def test_actor_and_critic_of_ppo_leave_norms_alone():
    for model in (build_llama(), build_scalar_model(build_llama())):
        before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
        learner = Learner(model, 1e-9, LearnerSettings(1e8, 1.0, 1.0, "constant", 0, 1))
        learner.backward(sum(parameter.sum() for parameter in model.parameters()) * 1e-6, is_last=True)
        learner.step()
        assert_decayed(model, before, 0.1)


def assert_decayed(model, before, rate: float) -> None:
    names = set(decayed_names(model))
    for key, parameter in model.named_parameters():
        expected = before[key] * (1 - rate) if key in names else before[key]
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-5, atol=1e-7, msg=key)

"""Stages that compare a policy with a reference train without dropout, wherever a model keeps it."""

from __future__ import annotations

import json
import random
import sys
from functools import partial

import pytest
import torch
from char_tokenizer import CHARACTERS, build_char_tokenizer
from tiny_models import DROPOUT, IDS, build, build_scalar_model
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

from keju import train_dpo, train_reward
from keju.models.backbone import tree_logprobs
from keju.models.generation import generate_responses
from keju.records.writing import write_jsonl
from keju.rl.learners import Learner, LearnerSettings
from keju.training.adapters import add_lora
from keju.training.dropout import dropout_of, train_without_dropout
from keju.training.launch import run_guarded
from keju.training.stage_model import StageModel
from keju.trees.packed_batch import PackedBatch
from keju.trees.segment import Segment

LN2 = 0.6931472
SIZES = {"vocab_size": 97, "initializer_range": 0.2, **IDS}
# Of transformers: modules, probabilities in attention, functions in the layers, whole layers, noise of the router
OTHERS = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "opt": {
        "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 32,
        "max_position_embeddings": 256, "dropout": 0.3, "attention_dropout": 0.3, "layerdrop": 0.5,
    },
    "falcon": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_dropout": 0.3,
        "attention_dropout": 0.3,
    },
    "mixtral": {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_local_experts": 2, "router_jitter_noise": 0.3, "attention_dropout": 0.3,
    },
}  # fmt: skip
BATCH = PackedBatch.from_trees([Segment(list(range(7, 40)), trained=True)])


def model_of(name: str) -> torch.nn.Module:
    if name in DROPOUT:
        return build(name, **DROPOUT[name])
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **{**SIZES, **OTHERS[name]}))


def logprobs(model, batch) -> torch.Tensor:
    if model.config.model_type in OTHERS:
        logits = model(input_ids=batch.input_ids, use_cache=False).logits[0, batch.source]
        return logits.log_softmax(-1).gather(1, batch.target[:, None])[:, 0]
    return tree_logprobs(model, batch).logprobs


def gradients(stage_model) -> list[torch.Tensor]:
    stage_model.zero_grad()
    stage_model(BATCH, logprobs).sum().backward()
    return [parameter.grad.clone() for parameter in stage_model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", [*(name for name in DROPOUT if name != "glm"), *OTHERS])
def test_training_mode_computes_as_evaluation_does(name, recompute):
    model = model_of(name)
    if recompute:
        model.activation_checkpointing_enable()
    before = model.config.to_dict()
    plain = StageModel(model).eval()
    expected, expected_gradients = plain(BATCH, logprobs), gradients(plain)
    assert not torch.equal(StageModel(model).train()(BATCH, logprobs), expected), "the model has no dropout"
    quiet = StageModel(model, dropout="none").train()
    layer = next(module for module in model.modules() if isinstance(module, GradientCheckpointingLayer))
    part, count = next(layer.children()), []
    hook = part.register_forward_hook(lambda *_: count.append(1))
    for ours, theirs in zip(gradients(quiet), expected_gradients, strict=True):
        assert torch.equal(ours, theirs)
    assert len(count) == 1 + recompute  # the layers compute again in the backward pass
    hook.remove()
    assert torch.equal(quiet(BATCH, logprobs), expected)
    assert model.config.to_dict() == before
    assert quiet.training and not quiet.eval().training and not layer.training


@pytest.mark.parametrize("name", ["opt", "pangu"])
def test_ppo_recomputes_without_dropout(name):
    model = model_of(name)
    expected = logprobs(model.eval(), BATCH)
    settings = LearnerSettings(0.0, 1.0, 1.0, "constant", 0, 1, activation_checkpointing=True)
    learner = Learner(model, 1e-3, settings)
    with learner.recomputing():
        assert torch.equal(learner(BATCH, logprobs), expected)
    assert not any(module.training for module in model.modules())


def test_dropout_of_adapters_stays_where_it_is_asked_for():
    model = add_lora(model_of("pangu"), task_type="CAUSAL_LM", r=4, alpha=8, dropout=0.5)
    model.eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_()
    expected = tree_logprobs(model, BATCH).logprobs
    for dropout, is_quiet in (("none", True), ("adapters", False)):
        stage_model = StageModel(model, dropout=dropout).train()
        found = [stage_model(BATCH, lambda *given: tree_logprobs(*given).logprobs) for _ in range(2)]
        assert [torch.equal(one, expected) for one in found] == [is_quiet] * 2
    # The model's own is off beside it
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.zero_()
    torch.testing.assert_close(tree_logprobs(stage_model.model, BATCH).logprobs, tree_logprobs(model.eval(), BATCH)[0])
    assert (dropout_of(True, 0.1), dropout_of(True, 0.0), dropout_of(False, 0.1)) == ("adapters", "none", "all")


def test_generation_leaves_a_model_as_it_was():
    model = model_of("pangu")
    train_without_dropout(model)
    model.training = True  # as TRL has it
    generate_responses(model, build_char_tokenizer(), [[1, 5]], max_new_tokens=2)
    assert [module for module in model.modules() if module.training] == [model]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dropout")
    tokenizer = build_char_tokenizer()
    torch.manual_seed(0)
    sizes = {**SIZES, **OTHERS["gpt2"], "vocab_size": len(tokenizer)}
    models = {
        "gpt2": AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **sizes)),
        "pangu": build("pangu", len(tokenizer), bos_token_id=1, **DROPOUT["pangu"]),
    }
    models["reward"] = build_scalar_model(models["pangu"])
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rng = random.Random(0)
    rows = [
        {
            "prompt": "".join(rng.choices(CHARACTERS, k=4)),
            "answers": [{"answer": "".join(rng.choices(CHARACTERS, k=20)), "score": score} for score in (1, 0)],
        }
        for _ in range(8)
    ]
    for part in ("train", "dev"):
        write_jsonl(folder / f"ranked_{part}.jsonl", rows)
    return folder


def first_loss(monkeypatch, stage, model, folder, output, *flags) -> float:
    settings = ["--model_name_or_path", model, "--data_dir", folder, "--output_dir", output, "--use_cpu"]
    settings += ["--max_length", 64, "--max_steps", 1, "--logging_steps", 1]
    if stage is train_dpo:
        settings += ["--reference_cache_dir", folder / "cache"]
    flags = [*settings, *flags]
    monkeypatch.setattr(sys, "argv", ["stage.py", *map(str, flags)])
    assert run_guarded(stage.main) == 0
    return json.loads((output / "metrics.jsonl").read_text().splitlines()[0])["loss"]


@pytest.mark.parametrize("model", ["gpt2", "pangu"])
def test_the_first_loss_of_dpo_is_that_of_an_untouched_policy(monkeypatch, folder, tmp_path, model):
    path = folder / model
    found = first_loss(monkeypatch, train_dpo, path, folder, tmp_path / "a", "--activation_checkpointing", "true")
    assert found == pytest.approx(LN2, abs=1e-5)
    config, saved = (json.loads((at / "config.json").read_text()) for at in (path, tmp_path / "a"))
    names = [name for name in config if "drop" in name]
    assert {name: saved[name] for name in names} == {name: config[name] for name in names} and 0.1 in config.values()
    found = first_loss(monkeypatch, train_dpo, path, folder, tmp_path / "b", "--no_disable_dropout")
    assert abs(found - LN2) > 1e-4


def test_adapters_that_are_trained_on_bring_no_dropout(monkeypatch, folder, tmp_path):
    """New ones with --lora_dropout add nothing at first; what they have learned is dropped only where that is asked."""
    flags = ["--use_peft", "--lora_dropout", 0.5, "--learning_rate", 0.1]
    dpo = partial(first_loss, monkeypatch, train_dpo)
    assert dpo(folder / "pangu", folder, tmp_path / "new", *flags, "--max_steps", 3) == pytest.approx(LN2, abs=1e-5)
    again = tmp_path / "new"
    assert dpo(again, folder, tmp_path / "quiet", "--use_peft") == pytest.approx(LN2, abs=1e-5)
    assert abs(dpo(again, folder, tmp_path / "asked", "--use_peft", "--lora_dropout", 0.5) - LN2) > 1e-4


def test_reward_models_train_without_dropout(monkeypatch, folder, tmp_path):
    found = [
        first_loss(monkeypatch, train_reward, folder / "reward", folder, tmp_path / str(number), "--seed", 5, *flags)
        for number, flags in enumerate(([], ["--activation_checkpointing", "true"], ["--no_disable_dropout"]))
    ]
    assert found[0] == pytest.approx(found[1], abs=1e-6) and found[2] != pytest.approx(found[0], abs=1e-5)

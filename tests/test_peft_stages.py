"""Adapters of every kind from the command line: trained, killed and resumed, loaded, merged; and PPO over one base."""

from __future__ import annotations

import json
import random
import shutil
import sys

import pytest
import torch
from char_tokenizer import CHARACTERS, build_char_tokenizer
from peft import PeftModel
from safetensors.torch import load_file
from tiny_models import build_llama, build_pangu, build_scalar_model

from keju import merge, train_dpo, train_grpo, train_reward, train_rlhf, train_sft
from keju.models.loading import load_causal_lm, load_scalar_model
from keju.models.quantization import nf4
from keju.records.writing import write_jsonl
from keju.rl.weight_sharing import share_weights
from keju.training.launch import run_guarded

IDS = torch.tensor([[1, 5, 6, 7, 8]])
FLAGS = ["--max_length", 64, "--token_budget", 128, "--learning_rate", 1e-2, "--use_cpu", "--max_steps", 4]
FLAGS += ["--use_peft", "--save_strategy", "steps", "--save_steps", 2, "--per_device_train_batch_size", 2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Llama, a PanGu and a reward model of 64 dimensions, so that the CPU reads them in 4 bits, and records."""
    folder = tmp_path_factory.mktemp("peft")
    tokenizer = build_char_tokenizer()
    llama = build_llama(vocab_size=len(tokenizer), hidden_size=64)
    llama.lm_head.weight.data[tokenizer.eos_token_id] *= 4  # so that some responses end
    pangu = build_pangu(vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2, hidden_size=64)
    for name, model in (("llama", llama), ("pangu", pangu), ("reward", build_scalar_model(llama))):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rng = random.Random(0)
    rows = [
        {
            "prompt": "".join(rng.choices(CHARACTERS, k=rng.randint(2, 12))),
            "answers": [{"answer": "".join(rng.choices(CHARACTERS, k=5)), "score": score} for score in (1, 0)],
        }
        for _ in range(8)
    ]
    for name in ("ranked_train", "ranked_dev", "prompts_train"):
        write_jsonl(folder / f"{name}.jsonl", rows)
    return folder


def run(monkeypatch, stage, *flags) -> int:
    monkeypatch.setattr(sys, "argv", [f"{stage.__name__.rpartition('.')[2]}.py", *map(str, flags)])
    return run_guarded(stage.main)


def train(monkeypatch, stage, folder, output, *flags, model="llama") -> int:
    paths = ["--model_name_or_path", folder / model, "--data_dir", folder, "--output_dir", output]
    return run(monkeypatch, stage, *paths, *FLAGS, *flags)


def last_line(capsys) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("stage", "model", "flags"),
    [
        (train_sft, "llama", ["--init_lora_weights", "pissa", "--use_rslora", "--loraplus_lr_ratio", 4]),
        (train_sft, "pangu", ["--use_dora", "--loraplus_lr_ratio", 4]),
        (train_sft, "pangu", ["--load_in_4bit", "--init_lora_weights", "loftq"]),
        (train_reward, "llama", ["--load_in_4bit", "--use_dora"]),
        (train_reward, "pangu", ["--init_lora_weights", "pissa", "--use_dora"]),
        (train_dpo, "llama", ["--load_in_4bit", "--use_rslora"]),
    ],
)
def test_trained_resumed_and_merged(monkeypatch, folder, tmp_path, stage, model, flags):
    if stage is train_dpo:
        flags = [*flags, "--reference_cache_dir", tmp_path / "cache"]
    assert train(monkeypatch, stage, folder, tmp_path / "whole", *flags, model=model) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed" / "checkpoint-4")
    (tmp_path / "killed" / "summary.json").unlink()
    resuming = [*flags, "--resume_from_checkpoint", "auto"]
    assert train(monkeypatch, stage, folder, tmp_path / "killed", *resuming, model=model) == 0
    states = [load_file(tmp_path / run / "adapter_model.safetensors") for run in ("whole", "killed")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])

    load = load_scalar_model if stage is train_reward else load_causal_lm
    trained = load(str(tmp_path / "whole")).eval()
    middle = load(str(tmp_path / "whole" / "checkpoint-2")).eval()
    assert not torch.equal(trained(IDS).logits, middle(IDS).logits)
    if "--load_in_4bit" not in flags:
        plain = PeftModel.from_pretrained(load(str(folder / model)), tmp_path / "whole").eval()
        torch.testing.assert_close(plain(IDS).logits, trained(IDS).logits, atol=1e-4, rtol=1e-4)

    merging = ["--model_name_or_path", tmp_path / "whole", "--output_dir", tmp_path / "merged"]
    assert run(monkeypatch, merge, *merging) == 0
    torch.testing.assert_close(load(str(tmp_path / "merged"))(IDS).logits, trained(IDS).logits, atol=2e-4, rtol=2e-4)
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert "quantization_config" not in config
    assert not any("lora" in name for name in load_file(tmp_path / "merged" / "model.safetensors"))


def test_layers_trained_whole_beside_4_bits(monkeypatch, folder, tmp_path):
    flags = ["--load_in_4bit", "--use_dora", "--lora_modules_to_save", "embed_tokens", "lm_head"]
    assert train(monkeypatch, train_sft, folder, tmp_path / "run", *flags) == 0
    merging = ["--model_name_or_path", tmp_path / "run", "--output_dir", tmp_path / "merged"]
    assert run(monkeypatch, merge, *merging) == 0
    merged, base = (load_file(path / "model.safetensors") for path in (tmp_path / "merged", folder / "llama"))
    assert not torch.equal(merged["model.embed_tokens.weight"], base["model.embed_tokens.weight"])
    assert not torch.equal(merged["lm_head.weight"], base["lm_head.weight"])


@pytest.mark.parametrize("model", ["llama", "pangu"])
def test_activations_that_are_computed_again_change_nothing(monkeypatch, folder, tmp_path, model):
    """Over a frozen base, where only adapters ask for gradients."""
    for name, flags in (("kept", []), ("again", ["--gradient_checkpointing"])):
        flags = [*flags, "--load_in_4bit", "--max_steps", 2]
        assert train(monkeypatch, train_sft, folder, tmp_path / name, *flags, model=model) == 0
    kept, again = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("kept", "again"))
    for name, tensor in kept.items():
        torch.testing.assert_close(again[name], tensor)


def test_groups_of_the_stage(monkeypatch, folder, tmp_path):
    """The optimizer state of a checkpoint says how fast each group was."""
    assert train(monkeypatch, train_sft, folder, tmp_path / "run", "--loraplus_lr_ratio", 8) == 0
    state = torch.load(tmp_path / "run" / "checkpoint-2" / "optimizer.pt", weights_only=True)
    assert sorted({group["initial_lr"] for group in state["param_groups"] if group["params"]}) == [1e-2, 8e-2]


@pytest.mark.parametrize(
    ("stage", "flags", "said"),
    [
        (train_sft, ["--load_in_4bit", "--use_peft", "false"], "--load_in_4bit: weights in 4 bits cannot be trained"),
        (train_sft, ["--init_lora_weights", "loftq"], "--init_lora_weights loftq makes up for what 4 bits lose"),
        (train_sft, ["--init_lora_weights", "pissa", "--load_in_4bit"], "--init_lora_weights pissa changes the base"),
        (train_dpo, ["--init_lora_weights", "loftq", "--load_in_4bit"], "--init_lora_weights loftq starts away from"),
        (train_sft, ["--loraplus_lr_ratio", 0], "--loraplus_lr_ratio: must be above 0, got 0"),
        (train_sft, ["--init_lora_weights", "eva"], "--init_lora_weights: invalid choice: 'eva'"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, folder, tmp_path, capsys, stage, flags, said):
    assert train(monkeypatch, stage, folder, tmp_path / "run", *flags) == 2
    assert said in last_line(capsys)


# -- PPO ---------------------------------------------------------------------------------------------------------------

PPO = ["--max_steps", 2, "--rollout_batch_size", 2, "--num_responses", 2, "--num_mini_batches", 1, "--save_steps", 1]
PPO += ["--max_prompt_length", 30, "--max_new_tokens", 6, "--token_budget", 128, "--max_eval_samples", 2, "--use_cpu"]
PPO += ["--actor_learning_rate", 1e-2, "--critic_learning_rate", 1e-2]


def train_policy(monkeypatch, folder, output, *flags, reward=None) -> int:
    paths = ["--model_name_or_path", folder / "llama", "--reward_model_path", reward or folder / "reward"]
    return run(monkeypatch, train_rlhf, *paths, "--data_dir", folder, "--output_dir", output, *PPO, *flags)


@pytest.mark.parametrize(
    "flags", [["--use_dora", "--use_rslora", "--loraplus_lr_ratio", 4], ["--load_in_4bit", "--use_dora"]], ids=str
)
def test_policies_over_one_base(monkeypatch, folder, tmp_path, flags):
    """The actor learns, its base does not, and both it and the critic come back from their folders."""
    if "--load_in_4bit" in flags:  # a reward model on the very base of the actor
        assert train(monkeypatch, train_reward, folder, tmp_path / "reward", "--load_in_4bit") == 0
        reward = tmp_path / "reward"
    else:
        reward = None
    assert train_policy(monkeypatch, folder, tmp_path / "run", "--share_base", *flags, reward=reward) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["evaluation_before"]["kl"] == pytest.approx(0, abs=1e-5) and summary["kl"] > 0
    if "--loraplus_lr_ratio" in flags:
        for name in ("actor", "critic"):
            path = tmp_path / "run" / "checkpoint-1" / f"{name}_optimizer.pt"
            groups = torch.load(path, weights_only=True)["param_groups"]
            assert sorted({group["initial_lr"] for group in groups}) == [1e-2, 4e-2]
    actor = load_causal_lm(str(tmp_path / "run"))
    load_scalar_model(str(tmp_path / "run" / "critic"), require_head=True)
    assert actor.peft_config["default"].use_dora
    merging = ["--model_name_or_path", tmp_path / "run", "--output_dir", tmp_path / "merged"]
    assert run(monkeypatch, merge, *merging) == 0
    merged = load_causal_lm(str(tmp_path / "merged"))
    torch.testing.assert_close(merged(IDS).logits, actor(IDS).logits, atol=2e-4, rtol=2e-4)


def test_4_bits_of_a_policy_need_one_base(monkeypatch, folder, tmp_path, capsys):
    assert train_policy(monkeypatch, folder, tmp_path / "run", "--load_in_4bit") == 2
    assert "--load_in_4bit: weights in 4 bits cannot be trained; it needs --share_base" in last_line(capsys)


def test_a_base_of_4_bits_is_shared_where_its_scales_are_the_same(folder, tmp_path):
    """Twice the weights have the same levels, and other scales."""
    models = [load_causal_lm(str(folder / "llama"), quantization=nf4(torch.float32)) for _ in range(2)]
    assert share_weights(*models)
    name = "model.layers.0.mlp.up_proj"
    assert models[0].get_submodule(name).weight is models[1].get_submodule(name).weight
    twice = load_causal_lm(str(folder / "llama"))
    twice.get_submodule(name).weight.data *= 2
    twice.save_pretrained(tmp_path)
    other = load_causal_lm(str(tmp_path), quantization=nf4(torch.float32))
    assert torch.equal(other.get_submodule(name).weight, models[0].get_submodule(name).weight)
    assert not share_weights(other, models[0])


# -- a folder of adapters as the start ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "flags"),
    [
        (["--lora_r", 4], []),
        (["--lora_r", 4, "--use_dora"], ["--use_peft", "--lora_r", 4, "--use_dora"]),
        (["--load_in_4bit"], ["--use_peft"]),
        (["--init_lora_weights", "pissa"], ["--use_peft"]),
    ],
    ids=str,
)
def test_adapters_are_trained_on(monkeypatch, folder, tmp_path, first, flags):
    """They were replaced by new ones without a word."""
    assert train(monkeypatch, train_sft, folder, tmp_path / "first", *first) == 0
    paths = ["--model_name_or_path", tmp_path / "first", "--data_dir", folder, "--output_dir", tmp_path / "second"]
    settings = [*FLAGS[: FLAGS.index("--use_peft")], "--learning_rate", 1e-6, "--eval_filename", ""]
    assert run(monkeypatch, train_sft, *paths, *settings, *flags) == 0
    start, end = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("first", "second"))
    assert start.keys() == end.keys()
    moved = [float((end[name] - start[name]).abs().max()) for name in start]
    assert all(0 < distance < 1e-4 for distance in moved)
    one, two = (load_causal_lm(str(tmp_path / name)) for name in ("first", "second"))
    torch.testing.assert_close(one(IDS).logits, two(IDS).logits, atol=1e-2, rtol=1e-2)


def test_adapters_are_no_start_of_others(monkeypatch, folder, tmp_path, capsys):
    assert train(monkeypatch, train_sft, folder, tmp_path / "first") == 0
    paths = ["--model_name_or_path", tmp_path / "first", "--data_dir", folder]
    for stage, flags, said in (
        (train_sft, ["--use_peft", "--lora_r", 4], "--lora_r: {} holds adapters, which are trained on as they are"),
        (train_sft, ["--use_peft", "--init_lora_weights", "pissa"], "--init_lora_weights: {} holds adapters"),
        (train_sft, ["--use_peft", "--lora_target_modules", "q_proj"], "--lora_target_modules: {} holds adapters"),
        (train_reward, ["--use_peft"], "--model_name_or_path: {} holds adapters of a model without a head"),
        (train_grpo, ["--reward_model_path", folder / "reward"], "--model_name_or_path: {} holds adapters, and GRPO"),
    ):
        steps = ["--rollout_batch_size", 4] if stage is train_grpo else ["--max_steps", 1]
        capsys.readouterr()
        assert run(monkeypatch, stage, *paths, "--output_dir", tmp_path / "run", "--use_cpu", *steps, *flags) == 2
        assert said.format(tmp_path / "first") in last_line(capsys)


# -- which layers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names", [["lm_head"], ["all-linear", "lm_head"], ["all"], ["embed_tokens", "q_proj"]], ids=str
)
def test_layers_by_name(monkeypatch, folder, tmp_path, names):
    """Adapters on the head were never trained, and the words for all layers were taken for the name of one."""
    assert train(monkeypatch, train_sft, folder, tmp_path / "run", "--lora_target_modules", *names) == 0
    state = load_file(tmp_path / "run" / "adapter_model.safetensors")
    of_b = {name: tensor for name, tensor in state.items() if "lora_B" in name or "lora_embedding_B" in name}
    assert all(tensor.any() for tensor in of_b.values())
    assert any("lm_head" in name for name in of_b) == ("lm_head" in names)
    assert any("up_proj" in name for name in of_b) == (names[0] in ("all-linear", "all"))
    trained = load_causal_lm(str(tmp_path / "run")).eval()
    assert not torch.allclose(trained(IDS).logits, load_causal_lm(str(folder / "llama")).eval()(IDS).logits)


@pytest.mark.parametrize(
    ("stage", "flags", "said"),
    [
        (
            train_sft,
            ["--use_dora", "--lora_target_modules", "lm_head"],
            "--lora_target_modules: the LM head has adapters",
        ),
        (
            train_reward,
            ["--lora_target_modules", "score", "q_proj"],
            "--lora_target_modules score: the head of a reward",
        ),
        (train_sft, ["--lora_target_modules", "nothing"], "--lora_target_modules: Target modules"),
    ],
)
def test_layers_that_get_no_adapters(monkeypatch, folder, tmp_path, capsys, stage, flags, said):
    assert train(monkeypatch, stage, folder, tmp_path / "run", *flags) == 2
    assert said in last_line(capsys)

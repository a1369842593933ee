"""A folder of adapters as the start of a stage: trained on, merged first, or kept beside new ones (--adapters)."""

from __future__ import annotations

import json
import math
import random
import shutil
import sys

import pytest
import torch
from char_tokenizer import CHARACTERS, build_char_tokenizer
from peft import PeftModel
from safetensors.torch import load_file
from tiny_models import build_llama, build_scalar_model

from keju import train_dpo, train_grpo, train_reward, train_rlhf, train_sft
from keju.models.loading import load_causal_lm, load_scalar_model
from keju.models.quantization import nf4
from keju.records.writing import write_jsonl
from keju.training.adapters import add_lora, save_model, verify_model
from keju.training.launch import run_guarded
from keju.training.stacking import load_stacked

IDS = torch.tensor([[1, 5, 6, 7, 8]])
KINDS = {
    "lora": {"target_modules": ["q_proj", "down_proj"]},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True, "target_modules": ["embed_tokens", "q_proj", "lm_head"]},
    "qlora": {},
}
WAYS = {
    "continue": ["--adapters", "continue"],
    "merge": ["--adapters", "merge"],
    "merge and new": ["--adapters", "merge", "--use_peft", "--lora_r", 2, "--init_lora_weights", "gaussian"],
    "stack": ["--adapters", "stack", "--use_peft", "--lora_r", 2, "--lora_alpha", 5],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base, adapters of every kind on it, those of a reward model, and records."""
    folder = tmp_path_factory.mktemp("starts")
    tokenizer = build_char_tokenizer()
    model = build_llama(vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2, hidden_size=64)
    model.lm_head.weight.data[tokenizer.eos_token_id] *= 4  # so that some responses end
    for name, whole in (("base", model), ("reward", build_scalar_model(model))):
        whole.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    for name in (*KINDS, "scalar"):
        load = load_scalar_model if name == "scalar" else load_causal_lm
        base = load(str(folder / "base"), quantization=nf4(torch.float32) if name == "qlora" else None)
        kind = "SEQ_CLS" if name == "scalar" else "CAUSAL_LM"
        model = add_lora(base.requires_grad_(False), task_type=kind, r=4, alpha=6, **KINDS.get(name, {}))
        shake(model)
        save_model(model, folder / name)
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


@torch.no_grad()
def shake(model) -> None:
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.add_((0.05 if "magnitude" in name or "embed" in name else 0.15) * torch.randn_like(parameter))


def run(monkeypatch, stage, *flags) -> int:
    monkeypatch.setattr(sys, "argv", [f"{stage.__name__.rpartition('.')[2]}.py", *map(str, flags)])
    return run_guarded(stage.main)


def train(monkeypatch, stage, folder, output, *flags, start="lora", steps=1, rate=1e-9) -> int:
    paths = ["--model_name_or_path", folder / start, "--data_dir", folder, "--output_dir", output]
    settings = ["--max_length", 64, "--token_budget", 128, "--learning_rate", rate, "--use_cpu", "--max_steps", steps]
    settings += ["--per_device_train_batch_size", 2, "--eval_filename", "", "--save_strategy", "no"]
    if stage is train_dpo:
        settings += ["--reference_cache_dir", output.parent / "cache"]
    return run(monkeypatch, stage, *paths, *settings, *flags)


def last_line(capsys) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def logits(path, load=load_causal_lm) -> torch.Tensor:
    with torch.no_grad():
        return load(str(path)).eval()(IDS, use_cache=False).logits


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_is_the_start_and_the_start_is_base_and_adapters(
    monkeypatch, folder, tmp_path, capsys, kind, way
):
    """The first loss of DPO is ln 2, and a run that hardly moves ends where base and adapters are together."""
    code = train(monkeypatch, train_dpo, folder, tmp_path / "run", *WAYS[way], start=kind)
    if (kind, way) == ("dora", "stack"):
        assert code == 2
        assert f"--adapters stack: the adapters in {folder}/dora have use_dora" in last_line(capsys)
        return
    assert code == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["first_loss"] == pytest.approx(math.log(2), abs=1e-5)
    start = logits(folder / kind)
    assert (start - logits(folder / "base")).abs().max() > 0.1
    torch.testing.assert_close(logits(tmp_path / "run"), start, atol=1e-3, rtol=1e-3)
    assert (tmp_path / "run" / "start").is_dir() == (way == "merge and new")
    settings = tmp_path / "run" / "adapter_config.json"
    assert settings.is_file() == (way != "merge")
    if way != "merge":
        base = json.loads(settings.read_text())["base_model_name_or_path"]
        assert base == str(tmp_path / "run" / "start" if way == "merge and new" else folder / "base")


@pytest.mark.parametrize(
    "flags",
    [
        ["--load_in_4bit"],
        ["--load_in_4bit", "--init_lora_weights", "loftq"],
        ["--init_lora_weights", "pissa"],
        ["--use_dora"],
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["rslora", "qlora"])
def test_new_adapters_of_every_kind_on_what_was_merged(monkeypatch, folder, tmp_path, kind, flags):
    flags = ["--adapters", "merge", "--use_peft", *flags]
    assert train(monkeypatch, train_sft, folder, tmp_path / "run", *flags, start=kind, steps=2, rate=1e-2) == 0
    start, end = logits(tmp_path / "run" / "start"), logits(tmp_path / "run")
    torch.testing.assert_close(start, logits(folder / kind), atol=1e-3, rtol=1e-3)
    assert not torch.equal(start, end)
    described = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert bool(described["auto_mapping"]) == ("--load_in_4bit" in flags)


@pytest.mark.parametrize("way", ["merge", "merge and new", "stack"])
def test_a_killed_run_goes_on_as_if_nothing_had_been(monkeypatch, folder, tmp_path, capsys, way):
    flags = [*WAYS[way], "--save_strategy", "steps", "--save_steps", 2]
    assert train(monkeypatch, train_sft, folder, tmp_path / "run", *flags, steps=4, rate=1e-2) == 0
    shutil.copytree(tmp_path / "run", tmp_path / "straight")
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    for path in ("summary.json", "model.safetensors", "adapter_model.safetensors"):
        (tmp_path / "run" / path).unlink(missing_ok=True)
    capsys.readouterr()
    flags += ["--resume_from_checkpoint", "auto"]
    assert train(monkeypatch, train_sft, folder, tmp_path / "run", *flags, steps=4, rate=1e-2) == 0
    assert ("merged into its base" in capsys.readouterr().out) == (way == "merge")  # nothing was kept of it
    (name,) = (path.name for path in (tmp_path / "straight").glob("*model.safetensors"))
    straight, resumed = (load_file(tmp_path / one / name) for one in ("straight", "run"))
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[key], resumed[key]) for key in straight)
    assert not torch.allclose(logits(tmp_path / "run"), logits(folder / "lora"), atol=1e-2)


def test_a_run_that_is_replaced_and_one_that_was_killed_early(monkeypatch, folder, tmp_path, capsys):
    """The new run's start is made beside the old run, and found again where no step had been taken."""
    flags = WAYS["merge and new"]
    assert train(monkeypatch, train_sft, folder, tmp_path / "run", *flags) == 0
    flags = [*flags, "--overwrite_output_dir"]
    assert train(monkeypatch, train_sft, folder, tmp_path / "run", *flags, start="rslora") == 0
    torch.testing.assert_close(logits(tmp_path / "run"), logits(folder / "rslora"), atol=1e-3, rtol=1e-3)
    assert not (tmp_path / "run" / ".new").exists()
    for path in (tmp_path / "run").iterdir():
        if path.name not in ("start", "args.json"):
            path.unlink()
    capsys.readouterr()
    assert train(monkeypatch, train_sft, folder, tmp_path / "run", *WAYS["merge and new"], start="rslora") == 0
    assert "merged into its base" not in capsys.readouterr().out


@pytest.mark.parametrize("flags", [[], ["--use_peft"]], ids=str)
@pytest.mark.parametrize("start", ["lora", "scalar"])
def test_a_reward_model_from_adapters(monkeypatch, folder, tmp_path, start, flags):
    flags = ["--adapters", "merge", *flags]
    assert train(monkeypatch, train_reward, folder, tmp_path / "run", *flags, start=start, rate=1e-3) == 0
    model = load_scalar_model(str(tmp_path / "run"), require_head=True)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["first_loss"] == pytest.approx(math.log(2), abs=1e-5)) == (start == "lora")  # a head of zeros
    assert hasattr(model, "peft_config") == ("--use_peft" in flags)


@pytest.mark.parametrize("kind", ["lora", "rslora", "qlora"])
def test_one_folder_for_both(folder, tmp_path, kind):
    """Any PEFT loads the adapters of the start and those beside them as one, on the base of the first."""
    base = {"base": None, "dtype": "float32", "quantization": None}
    model = load_stacked(load_causal_lm, str(folder / kind), **base)
    torch.testing.assert_close(model(IDS).logits, logits(folder / kind), atol=1e-4, rtol=1e-4)
    names = ["v_proj", "q_proj", "lm_head"]
    model = add_lora(model, task_type="CAUSAL_LM", r=3, alpha=7, target_modules=names, use_rslora=True).eval()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and not any(".start" in name for name in trained)
    torch.testing.assert_close(model(IDS).logits, logits(folder / kind), atol=1e-4, rtol=1e-4)
    shake(model)
    expected = model(IDS).logits.detach()
    save_model(model, tmp_path / "run")
    verify_model(model, tmp_path / "run")
    torch.testing.assert_close(logits(tmp_path / "run"), expected, atol=1e-4, rtol=1e-4)
    if kind != "qlora":
        plain = PeftModel.from_pretrained(load_causal_lm(str(folder / "base")), tmp_path / "run").eval()
        torch.testing.assert_close(plain(IDS).logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("stage", "start", "flags", "said"),
    [
        (
            train_sft,
            "base",
            ["--adapters", "continue"],
            "--adapters continue: --model_name_or_path {} holds no adapters",
        ),
        (train_sft, "base", ["--adapters", "merge"], "--adapters merge: --model_name_or_path {} holds no adapters"),
        (train_dpo, "llama-tiny", ["--adapters", "merge"], "--adapters merge: --model_name_or_path"),
        (
            train_sft,
            "lora",
            ["--adapters", "stack"],
            "--adapters stack: new adapters are trained beside those of the start",
        ),
        (train_sft, "dora", [*WAYS["stack"]], "--adapters stack: the adapters in {} have use_dora"),
        (train_sft, "scalar", [*WAYS["stack"]], "--adapters stack: the adapters in {} have modules_to_save"),
        (train_sft, "lora", [*WAYS["stack"], "--use_dora"], "--use_dora: is not for adapters beside others"),
        (
            train_sft,
            "lora",
            [*WAYS["stack"], "--init_lora_weights", "pissa"],
            "--init_lora_weights: is not for adapters",
        ),
        (train_reward, "lora", [*WAYS["stack"]], "--adapters stack: the head of a reward model is saved whole"),
        (
            train_sft,
            "lora",
            [*WAYS["stack"], "--load_in_4bit"],
            "--load_in_4bit: the adapters in {} were trained on a base",
        ),
        (train_sft, "lora", ["--use_peft", "--lora_r", 2], "(--adapters merge), or beside them (--adapters stack)"),
        (
            train_sft,
            "lora",
            ["--adapters", "merge", "--from_scratch"],
            "--adapters merge: --from_scratch takes neither",
        ),
    ],
)
def test_mistakes_are_one_line(monkeypatch, folder, tmp_path, capsys, stage, start, flags, said):
    assert train(monkeypatch, stage, folder, tmp_path / "run", *flags, start=start) == 2
    assert said.format(folder / start) in last_line(capsys)


# -- policies ----------------------------------------------------------------------------------------------------------


def train_policy(monkeypatch, folder, output, stage, *flags, start="lora") -> int:
    paths = ["--model_name_or_path", folder / start, "--reward_model_path", folder / "reward", "--data_dir", folder]
    steps = ["--max_steps", 2, "--rollout_batch_size", 2, "--num_responses", 2, "--max_prompt_length", 30]
    steps += ["--max_new_tokens", 6, "--max_eval_samples", 2, "--save_steps", 1, "--use_cpu"]
    rates = ["--learning_rate", 1e-9]
    if stage is train_rlhf:
        rates = ["--actor_learning_rate", 1e-9, "--critic_learning_rate", 1e-9, "--num_mini_batches", 1]
    return run(monkeypatch, stage, *paths, "--output_dir", output, *steps, *rates, *flags)


@pytest.mark.parametrize("flags", [[], ["--share_base"], ["--share_base", "--load_in_4bit"]], ids=str)
def test_a_policy_on_what_was_merged(monkeypatch, folder, tmp_path, flags):
    flags = ["--adapters", "merge", *flags]
    assert train_policy(monkeypatch, folder, tmp_path / "run", train_rlhf, *flags) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["evaluation_before"]["kl"] == pytest.approx(0, abs=1e-5)
    if "--load_in_4bit" not in flags:
        torch.testing.assert_close(logits(tmp_path / "run"), logits(folder / "lora"), atol=1e-3, rtol=1e-3)
    start = tmp_path / "run" / "start"
    assert start.is_dir() == ("--share_base" in flags)
    if "--share_base" in flags:
        torch.testing.assert_close(logits(start), logits(folder / "lora"), atol=1e-3, rtol=1e-3)
        actor = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
        assert actor["base_model_name_or_path"] == str(start)
        load_causal_lm(str(tmp_path / "run"))


def test_a_policy_of_grpo_is_merged(monkeypatch, folder, tmp_path, capsys):
    """Its reference is the merged model as well: the first KL is 0."""
    assert train_policy(monkeypatch, folder, tmp_path / "run", train_grpo, "--adapters", "merge") == 0
    torch.testing.assert_close(logits(tmp_path / "run"), logits(folder / "lora"), atol=1e-3, rtol=1e-3)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["kl"] for row in rows if "kl" in row][0] == pytest.approx(0, abs=1e-6)
    assert not (tmp_path / "run" / "start").exists()
    assert train_policy(monkeypatch, folder, tmp_path / "other", train_grpo) == 2
    assert "holds adapters, and GRPO trains whole models; --adapters merge" in last_line(capsys)


@pytest.mark.parametrize("stage", [train_rlhf, train_grpo])
def test_a_policy_without_adapters(monkeypatch, folder, tmp_path, capsys, stage):
    assert train_policy(monkeypatch, folder, tmp_path / "run", stage, "--adapters", "merge", start="base") == 2
    assert f"--adapters merge: --model_name_or_path {folder}/base holds no adapters" in last_line(capsys)

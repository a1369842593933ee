"""What the stages inherit from transformers.TrainingArguments: each option works, or one line refuses it."""

from __future__ import annotations

import dataclasses
import json
import random
import sys
from pathlib import Path

import pytest
import torch
from char_tokenizer import CHARACTERS, build_char_tokenizer
from flag_table import argument_classes, table
from safetensors.torch import load_file
from tiny_models import build_llama
from transformers import TrainingArguments

from keju import train_dpo, train_reward, train_sft
from keju.records.writing import write_jsonl
from keju.training.arguments import DataArguments, ModelArguments, StageTrainingArguments, parse_arguments
from keju.training.flag_effects import CONDITIONS, never
from keju.training.launch import run_guarded

REQUIRED = ["--model_name_or_path", "m", "--data_dir", "d", "--train_filename", "t.jsonl", "--output_dir", "out"]
# Values of another kind than text, where an option is refused.
VALUES = {
    **dict.fromkeys(("eval_accumulation_steps", "neftune_noise_alpha"), "1"),
    "label_smoothing_factor": "0.1",
    "hub_strategy": "end",
    "hub_private_repo": "true",
    "include_num_input_tokens_seen": "all",
    "train_sampling_strategy": "group_by_length",
}
# Options that the stages take from transformers as they are, by what a run here is given; the others need what this
# machine has not (a GPU, several machines, a tracker), or are those of every run.
RUNS = {
    "schedule": ["--lr_scheduler_type", "cosine_with_min_lr", "--lr_scheduler_kwargs", '{"min_lr": 1e-4}'],
    "plateau": ["--lr_scheduler_type", "reduce_lr_on_plateau", "--eval_strategy", "steps", "--eval_steps", 1],
    "logging": ["--logging_strategy", "epoch", "--log_level", "info", "--log_level_replica", "error"],
    "no log": ["--logging_strategy", "no", "--log_on_each_node", "false"],
    "evaluation": [
        *("--eval_strategy", "steps", "--eval_steps", 1, "--eval_delay", 2, "--eval_on_start"),
        *("--per_device_eval_batch_size", 2),
    ],
    "loader": [
        *("--dataloader_num_workers", 1, "--dataloader_persistent_workers", "--dataloader_prefetch_factor", 3),
        *("--dataloader_multiprocessing_context", "fork", "--dataloader_in_order", "true"),
        *("--dataloader_pin_memory", "false"),
    ],
    "checkpointing": ["--activation_checkpointing", "--activation_checkpointing_kwargs", '{"use_reentrant": true}'],
    "former name": ["--gradient_checkpointing", "--gradient_checkpointing_kwargs", '{"use_reentrant": false}'],
    "repeatable": ["--full_determinism", "--data_seed", 7, "--torch_empty_cache_steps", 1],
    "adam": ["--adam_beta1", 0.8, "--adam_beta2", 0.9, "--adam_epsilon", 1e-6, "--weight_decay", 0.1],
    "optimizer": ["--optim", "ademamix", "--optim_args", "beta3=0.99"],
    "best": ["--save_strategy", "best", "--metric_for_best_model", "loss", "--greater_is_better", "false"],
}
RUNS["best"] += ["--eval_strategy", "steps", "--eval_steps", 2]
ELSEWHERE = {
    *("bf16", "fp16", "tf32", "use_cpu", "deepspeed", "local_rank", "report_to", "run_name", "project"),
    *("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend"),
    *("ddp_timeout", "per_device_train_batch_size", "gradient_accumulation_steps", "max_steps", "learning_rate"),
    *("max_grad_norm", "seed", "save_steps", "save_only_model", "load_best_model_at_end"),
}


def parse(*argv):
    return parse_arguments(ModelArguments, DataArguments, StageTrainingArguments, argv=[*REQUIRED, *argv])


def refusal(capsys, *argv) -> str:
    with pytest.raises(SystemExit) as stop:
        parse(*argv)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def inherited() -> dict[str, dataclasses.Field]:
    own = set(StageTrainingArguments.__annotations__)
    return {item.name: item for item in dataclasses.fields(TrainingArguments) if item.init and item.name not in own}


def test_every_option_is_accounted_for():
    run_here = {str(flag)[2:] for flags in RUNS.values() for flag in flags if str(flag).startswith("--")}
    known = set(CONDITIONS) | run_here | ELSEWHERE
    assert not set(inherited()) - known, "new in transformers: try it, and say here or in flag_effects.py what it does"
    assert not ELSEWHERE & (run_here | {name for name, found in CONDITIONS.items() if found.holds is never})


@pytest.mark.parametrize("name", [name for name, found in CONDITIONS.items() if found.holds is never])
def test_what_does_not_fit_is_refused(capsys, name):
    condition = CONDITIONS[name]
    if not condition.is_refused:
        parse(f"--{name}")
        assert capsys.readouterr().err == f"warning: --{name} has no effect: {condition.why}\n"
        return
    default = next(item.default for item in dataclasses.fields(StageTrainingArguments) if item.name == name)
    value = VALUES.get(name, str(not default).lower() if isinstance(default, bool) else "x")
    assert refusal(capsys, f"--{name}={value}") == f"error: --{name}: {condition.why}"


def test_the_default_of_what_does_not_fit_may_be_written_down(capsys, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("remove_unused_columns: false\npush_to_hub: false\nlabel_smoothing_factor: 0\n")
    parse_arguments(ModelArguments, DataArguments, StageTrainingArguments, argv=[str(config), *REQUIRED])
    assert capsys.readouterr().err == ""


def test_a_secret_is_not_repeated(capsys):
    assert "hf_secret" not in refusal(capsys, "--hub_token", "hf_secret")


def test_help_shows_what_works(capsys):
    for flag in ("--help", "--help_all"):
        with pytest.raises(SystemExit):
            parse(flag)
        text = capsys.readouterr().out
        assert "--optim " in text and "--load_best_model_at_end" in text
        assert not [name for name in ("push_to_hub", "fsdp", "torch_compile", "use_cache") if f"--{name} " in text]
    assert "--dataloader_prefetch_factor" in text


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--eval_strategy", "steps"], "--eval_strategy: there is no --eval_filename to evaluate on"),
        (["--early_stopping_patience", "2"], "--early_stopping_patience: --eval_strategy is no, so that nothing is"),
        (["--dataloader_prefetch_factor", "2"], "--dataloader_prefetch_factor: there are no --dataloader_num_workers"),
        (["--optim", "adam"], "--optim: invalid choice: 'adam' (choose from 'adamw_torch', "),
        (["--optim", "lomo"], "--optim lomo: it updates weights inside the backward pass"),
        (["--optim", "galore_adamw"], "--optim galore_adamw: it projects gradients layer by layer"),
        (["--optim", "adamw_torch_npu_fused"], "--optim adamw_torch_npu_fused: "),
        (["--optim_args", "nonsense"], "--optim_args nonsense: expected name=value, got 'nonsense'"),
        (["--lr_scheduler_type", "cosin"], "--lr_scheduler_type: invalid choice: 'cosin' (choose from 'linear', "),
        (["--lr_scheduler_type", "cosine_with_min_lr"], "--lr_scheduler_kwargs: cosine_with_min_lr: "),
        (["--lr_scheduler_type", "reduce_lr_on_plateau"], "--lr_scheduler_type reduce_lr_on_plateau: "),
        (["--lr_scheduler_kwargs", '{"power": 2}'], "--lr_scheduler_kwargs: cosine: "),
        (["--lr_scheduler_kwargs", "{power: 2}"], "--lr_scheduler_kwargs: not JSON: "),
        (["--lr_scheduler_kwargs", "[1]"], "--lr_scheduler_kwargs: expected a JSON object"),
        (["--report_to", "wandbb"], "--report_to wandbb: choose from none, all, "),
        (["--report_to", "codecarbon"], "--report_to codecarbon: its package is not installed"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_loads(capsys, flags, line):
    assert refusal(capsys, *flags).startswith(f"error: {line}")


def test_the_table_of_flags_is_up_to_date():
    """python tests/flag_table.py > docs/flags.md"""
    assert (Path(__file__).parents[2] / "docs" / "flags.md").read_text(encoding="utf-8") == table()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("options")
    tokenizer = build_char_tokenizer()
    build_llama(vocab_size=len(tokenizer)).save_pretrained(folder / "llama")
    tokenizer.save_pretrained(folder / "llama")
    rng = random.Random(0)
    for part in ("train", "dev"):
        rows = [
            {
                "prompt": "".join(rng.choices(CHARACTERS, k=rng.randint(1, 20))),
                "answers": [
                    {"answer": "".join(rng.choices(CHARACTERS, k=rng.randint(1, 15))), "score": score}
                    for score in (1, 0)
                ],
            }
            for _ in range(12)
        ]
        write_jsonl(folder / f"ranked_{part}.jsonl", rows)
    return folder


@pytest.fixture
def run(folder, tmp_path, monkeypatch, capsys):
    def run(*flags, stage=train_sft, output="run") -> tuple[int, str]:
        argv = ["--model_name_or_path", folder / "llama", "--data_dir", folder, "--output_dir", tmp_path / output]
        argv += ["--train_filename", "ranked_train.jsonl", "--eval_filename", "ranked_dev.jsonl", "--use_cpu"]
        argv += ["--max_length", 64, "--token_budget", 128, "--learning_rate", 1e-2, "--logging_steps", 1]
        argv += ["--per_device_train_batch_size", 4, *flags]
        monkeypatch.setattr(sys, "argv", [f"{stage.__name__}.py", *map(str, argv)])
        code = run_guarded(stage.main)
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


def rows_of(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", RUNS)
def test_what_fits_works(run, tmp_path, name):
    code, text = run("--max_steps", 4, *RUNS[name])
    assert code == 0, text
    assert "warning" not in text
    rows = rows_of(tmp_path / "run") if name != "no log" else []
    if name == "schedule":
        assert [row["learning_rate"] for row in rows if "loss" in row][-1] >= 1e-4
    elif name == "evaluation":
        assert [row["step"] for row in rows if "eval_loss" in row] == [0, 2, 3, 4, 4]  # the last: after training
    elif name == "best":
        best = min((row for row in rows if "eval_loss" in row), key=lambda row: row["eval_loss"])
        assert (tmp_path / "run" / f"checkpoint-{best['step']}").is_dir()


EVERY = ["--eval_strategy", "steps", "--eval_steps", 1, "--save_steps", 1, "--max_steps", 12, "--learning_rate", 0.3]
EVERY += ["--lr_scheduler_type", "constant", "--warmup_steps", 0]


@pytest.mark.parametrize("adapters", [[], ["--use_peft", "--learning_rate", 1]], ids=["whole", "adapters"])
def test_the_best_model_is_the_one_that_is_left(run, tmp_path, adapters):
    """The rate is so high that evaluations soon get worse."""
    code, text = run(*EVERY, "--load_best_model_at_end", *adapters)
    assert code == 0, text
    rows = [row for row in rows_of(tmp_path / "run") if "eval_loss" in row]
    *seen, last = rows
    best = min(seen, key=lambda row: row["eval_loss"])
    assert best["step"] < 12 and last["eval_loss"] == pytest.approx(best["eval_loss"], rel=1e-6)
    assert f"The best model is that of step {best['step']} (loss " in text
    name = "adapter_model.safetensors" if adapters else "model.safetensors"
    left, kept = (load_file(tmp_path / "run" / part / name) for part in ("", f"checkpoint-{best['step']}"))
    assert left.keys() == kept.keys() and all(torch.equal(left[key], kept[key]) for key in left)


def test_a_run_ends_when_evaluations_get_no_better(run, tmp_path):
    code, text = run(*EVERY, "--early_stopping_patience", 2, "--load_best_model_at_end")
    assert code == 0, text
    losses = {row["step"]: row["eval_loss"] for row in rows_of(tmp_path / "run") if "eval_loss" in row}
    last = max(losses)
    assert last < 12 and f"the run ends after step {last} of 12" in text
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["finished"] and summary["steps"] == last
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("checkpoint-*/model.safetensors")}
    code, text = run(
        *EVERY, "--early_stopping_patience", 2, "--load_best_model_at_end", "--resume_from_checkpoint", "auto"
    )
    assert code == 0, text  # and trains nothing more
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.parametrize("stage", [train_dpo, train_reward])
def test_overrides_of_the_configuration_reach_every_stage(run, tmp_path, stage):
    code, text = run("--max_steps", 1, "--config_overrides", "rms_norm_eps=0.001", stage=stage)
    assert code == 0, text
    assert json.loads((tmp_path / "run" / "config.json").read_text())["rms_norm_eps"] == 0.001


@pytest.mark.parametrize("stage", ["train_dpo", "train_reward", "train_grpo"])
def test_what_a_stage_does_not_read_is_no_flag_of_it(stage):
    flags = {item.name for kind in argument_classes(stage) for item in dataclasses.fields(kind)}
    assert "model_name_or_path" in flags and not flags & {"from_scratch", "ptx_filename"}
    assert ("ranked_filename" in flags) == (stage == "train_rlhf")


def test_settings_of_other_losses_warn(run):
    flags = ["--simpo_gamma", 1, "--cpo_alpha", 2, "--desirable_weight", 2, "--max_steps", 1]
    code, text = run(*flags, "--loss_type", "sigmoid", "cpo", stage=train_dpo)
    assert code == 0 and "warning: --simpo_gamma has no effect: only --loss_type simpo reads it" in text
    assert "warning: --desirable_weight" in text and "warning: --cpo_alpha" not in text
    code, text = run("--loss_type", "kto", "--loss_weights", 2, stage=train_dpo)
    assert code == 2 and "--loss_weights has no effect with --loss_type kto" in text


def test_the_measure_of_the_best_is_one_that_is_measured(run):
    code, text = run(*EVERY, "--load_best_model_at_end", "--metric_for_best_model", "bleu")
    assert code == 2 and "--metric_for_best_model bleu: evaluations measure loss" in text and "Loading" not in text
    code, text = run(*EVERY, "--metric_for_best_model", "margins", "--load_best_model_at_end", stage=train_dpo)
    assert code == 2 and "evaluations measure loss, accuracy, margin, " in text


@pytest.mark.parametrize("optimizer", ["sgd", "adafactor", "adamw_8bit", "lion_8bit"])
def test_optimizers_by_name(run, tmp_path, optimizer):
    """A run that goes on from the state of its optimizer ends where a straight one does."""
    if "8bit" in optimizer:
        pytest.importorskip("bitsandbytes")
    flags = ["--optim", optimizer, "--save_steps", 2, "--save_total_limit", 5, "--learning_rate", 1e-3]
    code, text = run(*flags, "--max_steps", 4)
    assert code == 0, text
    straight = load_file(tmp_path / "run" / "model.safetensors")
    resume = tmp_path / "run" / "checkpoint-2"
    code, text = run(*flags, "--max_steps", 4, "--resume_from_checkpoint", resume, output="run")
    assert code == 0, text
    resumed = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_a_warmup_that_is_longer_than_the_run_warns(run):
    code, text = run("--max_steps", 4, "--warmup_steps", 8)
    assert code == 0 and "warning: --warmup_steps 8: the run has only 4 steps, in which" in text
    assert "comes to 50% of its peak" in text

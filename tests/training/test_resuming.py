"""Runs that go on from a checkpoint that was made with something else, or of a run that was at its end."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

import kill

from keju import pretrain, train_dpo, train_grpo, train_reward, train_rlhf, train_sft
from keju.records.journal import Journal
from keju.training import stage as training_stage
from keju.training.checkpoints import MANIFEST, checkpoints
from keju.training.launch import run_guarded
from keju.training.resuming import NEUTRAL, apply_settings, changed_settings, deciding
from keju.training.tree_trainer import TreeTrainer

SCRIPTS = {
    "pretrain": pretrain,
    "sft": train_sft,
    "reward": train_reward,
    "dpo": train_dpo,
    "kto": train_dpo,
    "rlhf": train_rlhf,
    "grpo": train_grpo,
}
AUTO = ("--resume_from_checkpoint", "auto")
STEPS = 5  # a pass over the records has more


def run(monkeypatch, stage: str, folder: Path, output: Path, *flags, steps: int = STEPS) -> int:
    """The stage in this process; its exit code."""
    command = kill.Series(stage, folder, steps).command(output, *map(str, flags))
    monkeypatch.setattr(sys, "argv", command[2:])
    return run_guarded(SCRIPTS[stage].main)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models and records of kill.py."""
    folder = tmp_path_factory.mktemp("resuming")
    kill.make_inputs(folder)
    return folder


def whole(folder: Path, stage: str) -> Path:
    """An unbroken run of the stage, with all its checkpoints."""
    output = folder / f"whole_{stage}"
    if not output.exists():
        with pytest.MonkeyPatch.context() as patch:
            assert run(patch, stage, folder, output, "--save_total_limit", 9) == 0
    return output


def until(folder: Path, stage: str, output: Path, step: int) -> Path:
    """The unbroken run as it was when it had written its checkpoint of `step`, and nothing after that."""
    shutil.copytree(whole(folder, stage), output)
    for number, path in checkpoints(output):
        if number > step:
            shutil.rmtree(path)
    (output / "summary.json").unlink()
    for file in output.glob("*.safetensors"):
        file.unlink()
    return output


def assert_refused(monkeypatch, capsys, stage, folder, output, *flags) -> str:
    """In one line, with nothing changed; the line."""
    files = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    capsys.readouterr()
    assert run(monkeypatch, stage, folder, output, *flags, *AUTO) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    changed = {path for path, time in files.items() if path.is_file() and path.stat().st_mtime_ns != time}
    assert changed <= {output / "args.json", output / f"{stage}.log", output / "metrics.jsonl"}
    assert {path for path in output.rglob("*")} == files.keys()
    return line


SETTINGS = [
    ("sft", "seed", 7),
    ("sft", "token_budget", 96),
    ("sft", "gradient_accumulation_steps", 2),
    ("sft", "per_device_train_batch_size", 3),
    ("sft", "learning_rate", 2e-3),
    ("sft", "max_length", 48),
    ("sft", "weight_decay", 0.1),
    ("sft", "max_grad_norm", 0.5),
    ("sft", "lr_scheduler_type", "linear"),
    ("sft", "max_train_samples", 20),
    ("dpo", "beta", 0.2),
    ("reward", "label_smoothing", 0.1),
    ("rlhf", "kl_coef", 0.3),
    ("rlhf", "actor_learning_rate", 2e-3),
    ("rlhf", "temperature", 0.5),
    ("kto", "desirable_weight", 0.5),
    ("grpo", "seed", 7),
    ("grpo", "num_responses", 4),
    ("grpo", "learning_rate", 2e-3),
]


@pytest.mark.parametrize(("stage", "name", "value"), SETTINGS)
def test_another_setting_is_refused(monkeypatch, folder, tmp_path, capsys, stage, name, value):
    output = until(folder, stage, tmp_path / "run", 2)
    line = assert_refused(monkeypatch, capsys, stage, folder, output, f"--{name}", value)
    assert line.startswith(f"error: --resume_from_checkpoint: {output}/checkpoint-2 was made with --{name} ")
    assert f"now --{name} {value}" in line and "--resume_with_changes" in line


@pytest.mark.parametrize(("name", "value"), [("optim", "sgd"), ("use_peft", "true"), ("dtype", "bfloat16")])
def test_what_the_files_have_the_form_of_cannot_change(monkeypatch, folder, tmp_path, capsys, name, value):
    output = until(folder, "sft", tmp_path / "run", 2)
    flags = (f"--{name}", value, "--resume_with_changes")
    line = assert_refused(monkeypatch, capsys, "sft", folder, output, *flags)
    assert f"--{name}" in line and line.endswith("its files cannot be loaded otherwise")


def test_settings_that_decide_nothing_may_change(monkeypatch, folder, tmp_path):
    output = until(folder, "sft", tmp_path / "run", 2)
    flags = ("--save_steps", 3, "--logging_steps", 2, "--save_total_limit", 1, "--dataloader_num_workers", 1)
    assert run(monkeypatch, "sft", folder, output, *flags, *AUTO) == 0
    assert kill.weights(output) == kill.weights(whole(folder, "sft"))


@pytest.mark.parametrize("stage", ["sft", "dpo", "rlhf", "grpo"])
def test_other_records_are_refused(monkeypatch, folder, tmp_path, capsys, stage):
    name = "prompts_train.jsonl" if stage in ("rlhf", "grpo") else "ranked_train.jsonl"
    data = shutil.copytree(folder, tmp_path / "data", ignore=shutil.ignore_patterns("whole_*", "*model*", "reward*"))
    output = until(folder, stage, tmp_path / "run", 2)
    same = ("--data_dir", data)
    assert run(monkeypatch, stage, folder, output, *same, *AUTO) == 0  # the same ones elsewhere
    shutil.rmtree(output)
    until(folder, stage, output, 2)
    lines = (data / name).read_text().splitlines(keepends=True)
    (data / name).write_text("".join(lines[::-1]))  # of the same length, even
    line = assert_refused(monkeypatch, capsys, stage, folder, output, *same)
    assert "was made with other content of --train_filename" in line and "--resume_with_changes" in line
    assert run(monkeypatch, stage, folder, output, *same, *AUTO, "--resume_with_changes") == 0
    assert "changed since checkpoint-2: what --train_filename names" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["model_name_or_path", "reward_model_path"])
def test_another_model_is_refused(monkeypatch, folder, tmp_path, capsys, flag):
    stage = "dpo" if flag == "model_name_or_path" else "rlhf"
    source = folder / ("model" if stage == "dpo" else "reward")
    other = shutil.copytree(source, tmp_path / "other")
    output = until(folder, stage, tmp_path / "run", 2)
    state = bytearray((other / "model.safetensors").read_bytes())
    state[-1] ^= 1
    (other / "model.safetensors").write_bytes(state)
    line = assert_refused(monkeypatch, capsys, stage, folder, output, f"--{flag}", other)
    assert f"was made with other content of --{flag}" in line


def test_a_checkpoint_of_another_stage_is_refused(monkeypatch, folder, tmp_path, capsys):
    checkpoint = whole(folder, "sft") / "checkpoint-2"
    assert run(monkeypatch, "dpo", folder, tmp_path / "run", "--resume_from_checkpoint", checkpoint) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"{checkpoint} is of the stage sft, this is dpo" in line and f"--model_name_or_path {checkpoint}" in line
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_without_the_optimizer_is_refused(monkeypatch, folder, tmp_path, capsys):
    output = tmp_path / "run"
    assert run(monkeypatch, "sft", folder, output, "--save_only_model", "true") == 0
    (output / "summary.json").unlink()
    shutil.rmtree(output / "checkpoint-5")
    line = assert_refused(monkeypatch, capsys, "sft", folder, output)
    assert "has no state of the optimizer (--save_only_model)" in line and "--model_name_or_path" in line


@pytest.mark.parametrize("made_with", [[], {"stage": "sft"}, {"arguments": 1, "stage": "sft"}, "sft"])
def test_a_manifest_of_another_form_is_refused(monkeypatch, folder, tmp_path, capsys, made_with):
    output = until(folder, "sft", tmp_path / "run", 2)
    path = output / "checkpoint-2" / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "made_with": made_with}))
    assert "manifest" in assert_refused(monkeypatch, capsys, "sft", folder, output)


def test_a_new_learning_rate_is_used_where_it_is_asked_for(monkeypatch, folder, tmp_path, capsys):
    output = until(folder, "sft", tmp_path / "run", 2)
    flags = ("--learning_rate", 4e-3, "--weight_decay", 0.1, "--resume_with_changes")
    assert run(monkeypatch, "sft", folder, output, *flags, *AUTO) == 0
    said = capsys.readouterr().out
    assert "changed since checkpoint-2: --learning_rate 0.001 -> 0.004" in said and "--weight_decay 0.0 -> 0.1" in said
    before, after = (
        {row["step"]: row["learning_rate"] for row in Journal(path / "metrics.jsonl").read() if "learning_rate" in row}
        for path in (whole(folder, "sft"), output)
    )
    assert after[2] == before[2]
    assert all(after[step] == pytest.approx(4 * before[step]) for step in (3, 4, 5))
    state = torch.load(output / "checkpoint-5" / "optimizer.pt", weights_only=True)
    assert {group["weight_decay"] for group in state["param_groups"]} == {0.1, 0.0}


def test_a_new_kl_coefficient_is_used_where_it_is_asked_for(monkeypatch, folder, tmp_path):
    output = until(folder, "rlhf", tmp_path / "run", 2)
    assert run(monkeypatch, "rlhf", folder, output, "--kl_coef", 7, "--resume_with_changes", *AUTO) == 0
    rows = {row["step"]: row["kl_coef"] for row in Journal(output / "metrics.jsonl").read()}
    assert rows[2] < 1 and rows[3] == pytest.approx(7, rel=0.01)


def test_a_step_back_keeps_the_new_settings(monkeypatch, folder, tmp_path, capsys):
    """The checkpoint that --on_alarm rollback goes back to may be older than the change."""
    output = until(folder, "rlhf", tmp_path / "run", 2)
    flags = ("--actor_learning_rate", 2e-3, "--kl_coef", 7, "--on_alarm", "rollback")
    flags += ("--alarm_kl", 1e-9, "--alarm_window", 2)
    assert run(monkeypatch, "rlhf", folder, output, *flags, "--resume_with_changes", *AUTO) == 0
    assert "went back to checkpoint-2" in capsys.readouterr().out
    before, after = (
        {row["step"]: row for row in Journal(path / "metrics.jsonl").read()} for path in (whole(folder, "rlhf"), output)
    )
    (back, *_) = [row["step"] for row in Journal(output / "alarms.jsonl").read() if row["action"] == "rollback"]
    for step in (3, back + 1):  # the same step of the schedule twice
        assert after[step]["actor_learning_rate"] == pytest.approx(2 * before[3]["actor_learning_rate"])
    assert after[back + 1]["kl_coef"] == pytest.approx(2 * after[back]["kl_coef"], rel=0.05)  # --kl_target adapts it


# -- at the end of a run -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", SCRIPTS)
@pytest.mark.parametrize("step", [4, 5])
def test_killed_after_a_checkpoint_it_trains_what_is_left(monkeypatch, folder, tmp_path, stage, step):
    """5 steps are no whole passes over the records, nor is 4 the last one."""
    output = until(folder, stage, tmp_path / "run", step)
    assert run(monkeypatch, stage, folder, output, *AUTO) == 0
    unbroken = whole(folder, stage)
    assert kill.weights(output) == kill.weights(unbroken) and kill.rows(output) == kill.rows(unbroken)
    assert [row["step"] for row in kill.rows(output)] == [*range(1, STEPS + 1)]


@pytest.mark.parametrize("stage", ["sft", "rlhf"])
@pytest.mark.parametrize("saves", ["steps", "no"])
def test_killed_in_the_final_evaluation_the_training_is_not_lost(monkeypatch, folder, tmp_path, capsys, stage, saves):
    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    def evaluate(*args, original=train_rlhf.evaluate, **kwargs):
        return killed() if args[-1] == "after" else original(*args, **kwargs)

    output, flags = tmp_path / "run", ("--save_strategy", saves, "--eval_filename", "ranked_dev.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr(TreeTrainer, "evaluate", killed)
        patch.setattr(train_rlhf, "evaluate", evaluate)
        assert run(patch, stage, folder, output, *flags) == 130
    said = capsys.readouterr().err
    assert kill.weights(output) == kill.weights(whole(folder, stage))
    if saves == "no":
        assert "there is no checkpoint to go on from (--save_strategy no)" in said
        assert assert_refused(monkeypatch, capsys, stage, folder, output, *flags).endswith("or --overwrite_output_dir")
        return
    assert "--resume_from_checkpoint auto" in said
    assert run(monkeypatch, stage, folder, output, *flags, *AUTO) == 0
    assert kill.weights(output) == kill.weights(whole(folder, stage))
    assert json.loads((output / "summary.json").read_text())["finished"]


def test_a_final_evaluation_that_was_logged_is_not_logged_twice(monkeypatch, folder, tmp_path):
    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    flags = ("--eval_filename", "ranked_dev.jsonl", "--eval_strategy", "steps", "--eval_steps", STEPS)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run(monkeypatch, "sft", folder, whole, *flags) == 0
    with monkeypatch.context() as patch:
        patch.setattr(training_stage, "plot_loss", killed)
        assert run(patch, "sft", folder, broken, *flags) == 130
    assert run(monkeypatch, "sft", folder, broken, *flags, *AUTO) == 0
    evaluations = [row["step"] for row in kill.rows(broken) if "eval_loss" in row]
    assert evaluations == [STEPS, STEPS]  # within the training and after it
    assert kill.rows(broken) == kill.rows(whole)


# -- parts -------------------------------------------------------------------------------------------------------------


def test_what_decides():
    arguments = {"seed": 1, "output_dir": "x", "max_steps": 5, "num_train_epochs": 2}
    assert deciding("sft", arguments) == {"stage": "sft", "arguments": {"seed": 1, "max_steps": 5}}
    assert "num_train_epochs" in deciding("sft", arguments | {"max_steps": -1})["arguments"]
    assert deciding("sft", {"adapters": None}) == deciding("sft", {"adapters": "continue"})


@pytest.mark.parametrize(
    "asked", [{"load_best_model_at_end": True}, {"early_stopping_patience": 3}, {"lr_scheduler_type": "greedy"}]
)
def test_evaluations_decide_where_a_run_goes_by_them(asked):
    evaluation = {"eval_steps": 5, "eval_filename": "dev.jsonl", "per_device_eval_batch_size": 8}
    plain = {"load_best_model_at_end": False, "early_stopping_patience": None, "lr_scheduler_type": "cosine"}
    assert deciding("sft", plain | evaluation)["arguments"] == plain
    kept = plain | asked | {"eval_steps": 5, "eval_filename": "dev.jsonl"}
    assert deciding("sft", plain | asked | evaluation)["arguments"] == kept


def test_every_neutral_setting_is_one():
    """A flag that was renamed would decide from then on without anybody having thought of it."""
    from dataclasses import fields

    from keju.rl.arguments import PPOArguments, PPODataArguments, PPOModelArguments
    from keju.training.arguments import DataArguments, ModelArguments

    kinds = (PPOArguments, PPODataArguments, PPOModelArguments, DataArguments, ModelArguments, train_dpo.DPOArguments)
    assert {item.name for kind in kinds for item in fields(kind)} >= NEUTRAL - {"local_rank"}


def test_a_setting_of_one_version_alone_is_not_compared():
    known = {"stage": "sft", "arguments": {"seed": 1, "gone": 2}}
    now = {"stage": "sft", "arguments": {"seed": 1, "new": 3}}
    assert changed_settings(Path("checkpoint-1"), known, now, accept=False) == {}
    assert changed_settings(Path("checkpoint-1"), None, now, accept=False) == {}


def test_schedules_that_remember_cannot_be_changed():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    with pytest.raises(ValueError, match="a ReduceLROnPlateau cannot change its settings"):
        apply_settings(optimizer, ReduceLROnPlateau(optimizer), optimizer.param_groups)
    scheduler = LambdaLR(optimizer, lambda step: 1 / (1 + step))
    optimizer.step()
    scheduler.step()
    apply_settings(optimizer, scheduler, [{"lr": 3.0, "initial_lr": 3.0, "weight_decay": 0.5}])
    assert optimizer.param_groups[0]["lr"] == 1.5 and optimizer.param_groups[0]["weight_decay"] == 0.5
    assert scheduler.get_last_lr() == [1.5]

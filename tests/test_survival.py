"""Training runs that are killed, stopped, fed with NaN, or out of disk: what is left of them, and how they go on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent / "bench"))

import kill

from keju import train_rlhf, train_sft
from keju.records.writing import write_json
from keju.training.checkpoints import MANIFEST, checkpoints, damage
from keju.training.launch import run_guarded
from keju.training.tree_trainer import TreeTrainer

SCRIPTS = {"sft": train_sft, "rlhf": train_rlhf}
STEPS = 6
AUTO = ("--resume_from_checkpoint", "auto")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models and records of kill.py, and an unbroken run of each stage in `whole_<stage>`."""
    folder = tmp_path_factory.mktemp("survival")
    kill.make_inputs(folder)
    with pytest.MonkeyPatch.context() as patch:
        for stage in SCRIPTS:
            assert run(patch, stage, folder, folder / f"whole_{stage}", "--save_total_limit", 3) == 0
    return folder


def run(monkeypatch, stage: str, folder: Path, output: Path, *flags, steps: int = STEPS) -> int:
    """The stage in this process; its exit code."""
    command = kill.Series(stage, folder, steps).command(output, *map(str, flags))
    monkeypatch.setattr(sys, "argv", command[2:])
    return run_guarded(SCRIPTS[stage].main)


def assert_ends_like_the_whole(folder: Path, stage: str, output: Path) -> None:
    whole = folder / f"whole_{stage}"
    assert (output / "summary.json").is_file()
    assert kill.weights(output) == kill.weights(whole)
    assert kill.rows(output) == kill.rows(whole)


def copied(folder: Path, stage: str, output: Path, steps: list[int]) -> Path:
    """The unbroken run as it was when it had written only the checkpoints of `steps`."""
    shutil.copytree(folder / f"whole_{stage}", output)
    for step, path in checkpoints(output):
        if step not in steps:
            shutil.rmtree(path)
    (output / "summary.json").unlink()
    return output


def steps_of(output: Path) -> list[int]:
    return [step for step, _ in checkpoints(output)]


# -- SIGKILL and SIGTERM -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "family"), [("rlhf", "llama"), ("sft", "pangu"), ("grpo", "llama")])
def test_killed_at_random_moments_and_in_the_middle_of_saving(tmp_path, stage, family):
    kill.make_inputs(tmp_path, family)
    outcome = kill.survive(kill.Series(stage, tmp_path, steps=17, evaluated=True), kills=4)
    assert outcome.bit_equal and outcome.rows_equal
    assert outcome.kills == 4 and outcome.kills_in_save
    assert outcome.lost_steps_max <= kill.SAVE_STEPS


@pytest.mark.parametrize(
    ("stage", "name"),
    [("sft", "SIGHUP"), ("rlhf", "SIGTERM")],
)
def test_a_signal_saves_and_ends_with_0(monkeypatch, folder, tmp_path, stage, name):
    output, steps = tmp_path / "run", 2000  # more than it can do before the signal
    argv = kill.Series(stage, folder, steps).command(output, "--save_steps", "1000", "--lr_scheduler_type", "constant")
    process = subprocess.Popen(
        argv,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # under nohup it is ignored, and stays so
    )
    try:
        while process.poll() is None and not kill.logged_step(output):
            time.sleep(0.01)
        process.send_signal(signal.Signals[name])
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, said
    lines = [line for line in said.splitlines() if line.startswith(f"stopped by {name}")]
    (step,) = steps_of(output)
    saved = f"{output}/checkpoint-{step}"
    assert lines == [f"stopped by {name} after step {step}; --resume_from_checkpoint auto goes on from {saved}"]
    assert damage(output / f"checkpoint-{step}") is None and kill.logged_step(output) == step
    assert not (output / "summary.json").exists() and not kill.is_saving(output)

    flags = ("--lr_scheduler_type", "constant", "--save_strategy", "no")
    changed = ("--resume_with_changes",)  # there are fewer steps now
    assert run(monkeypatch, stage, folder, output, *flags, *AUTO, *changed, steps=step + 2) == 0
    assert run(monkeypatch, stage, folder, tmp_path / "whole", *flags, steps=step + 2) == 0
    assert kill.weights(output) == kill.weights(tmp_path / "whole")


# -- NaN ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", SCRIPTS)
def test_a_loss_of_nan_names_step_and_records(monkeypatch, folder, tmp_path, capsys, stage):
    """The first step of a warm-up has a rate of 0, the second one breaks the weights, the third one sees it."""
    output = tmp_path / "run"
    rates = ["--learning_rate"] if stage == "sft" else ["--num_mini_batches", 1, "--critic_learning_rate"]
    rates += [1e30] if stage == "sft" else [1e30, "--actor_learning_rate", 1e30]
    assert run(monkeypatch, stage, folder, output, *rates, "--warmup_steps", 2, "--save_steps", 1) == 1
    said = capsys.readouterr().err
    records = "prompts_train.jsonl" if stage == "rlhf" else "ranked_train.jsonl"
    (line,) = [line for line in said.splitlines() if line.startswith("Training diverged: ")]
    assert " is not finite at step 3 (records: " in line and f"{folder / records}:" in line
    assert "learning_rate" in said and "Traceback" not in said
    assert steps_of(output) == [1, 2] and all(damage(path) is None for _, path in checkpoints(output))
    inner = "actor" if stage == "rlhf" else "."
    assert kill.weights(output / "checkpoint-1" / inner) == kill.weights(folder / "model")


@pytest.mark.parametrize("stage", SCRIPTS)
def test_a_model_of_nan_is_refused(monkeypatch, folder, tmp_path, capsys, stage):
    shutil.copytree(folder / "model", tmp_path / "model")
    state = load_file(tmp_path / "model" / "model.safetensors")
    state["model.norm.weight"][0] = torch.nan
    save_file(state, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    assert run(monkeypatch, stage, folder, tmp_path / "run", "--model_name_or_path", tmp_path / "model") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: --model_name_or_path: the model's own outputs are not finite")


# -- full disks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["sft", pytest.param("rlhf", marks=pytest.mark.slow)])
def test_a_full_disk_costs_no_checkpoint(monkeypatch, folder, tmp_path, stage):
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    probe = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(disk)], capture_output=True)
    if probe.returncode:
        pytest.skip(f"no small disk can be mounted here: {probe.stderr.decode().strip()}")
    command = kill.Series(stage, folder, STEPS).command(disk / "run")
    script = 'size=$1 disk=$2 kept=$3; shift 3; mount -t tmpfs -o size="$size" tmpfs "$disk"; "$@"; code=$?; '
    script += 'cp -r "$disk/run" "$kept"; exit $code'
    one = sum(path.stat().st_size for path in (folder / f"whole_{stage}" / "checkpoint-2").rglob("*"))
    size = str(3 * one // 2)  # the second checkpoint does not fit
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", size, str(disk), str(kept), *command],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    assert "The disk is full: " in done.stderr and "--save_total_limit 1 " in done.stderr
    assert "--output_dir <folder on another disk>" in done.stderr and "Traceback" not in done.stderr
    assert steps_of(kept) == [2] and damage(kept / "checkpoint-2") is None and not kill.is_saving(kept)
    assert run(monkeypatch, stage, folder, kept, *AUTO) == 0
    assert_ends_like_the_whole(folder, stage, kept)


def test_a_save_that_fails_keeps_the_only_checkpoint(monkeypatch, folder, tmp_path, capsys):
    def full(trainer, output_dir=None, state_dict=None, save=TreeTrainer._save):
        save(trainer, output_dir, state_dict)
        if trainer.state.global_step == 4:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(TreeTrainer, "_save", full)
        assert run(patch, "sft", folder, tmp_path / "run", "--save_total_limit", 1) == 1
    said = capsys.readouterr().err
    assert "The disk is full: " in said and "--save_only_model" in said and "--save_total_limit" not in said
    assert steps_of(tmp_path / "run") == [2] and damage(tmp_path / "run" / "checkpoint-2") is None
    assert not kill.is_saving(tmp_path / "run")
    assert run(monkeypatch, "sft", folder, tmp_path / "run", "--save_total_limit", 1, *AUTO) == 0
    assert steps_of(tmp_path / "run") == [6]
    assert_ends_like_the_whole(folder, "sft", tmp_path / "run")


# -- damaged files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "file"),
    [
        ("sft", "model.safetensors"),
        ("sft", "optimizer.pt"),
        ("sft", "trainer_state.json"),
        ("rlhf", "actor/model.safetensors"),
        ("rlhf", "critic_optimizer.pt"),
    ],
)
def test_a_truncated_file_is_named_and_the_older_checkpoint_taken(monkeypatch, folder, tmp_path, capsys, stage, file):
    output = copied(folder, stage, tmp_path / "run", [2, 4])
    truncate(output / "checkpoint-4" / file)
    files = sorted(output.rglob("*"))
    assert run(monkeypatch, stage, folder, output, "--resume_from_checkpoint", output / "checkpoint-4") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --resume_from_checkpoint: {output}/checkpoint-4: {file} has ")
    assert sorted(output.rglob("*")) == files

    assert run(monkeypatch, stage, folder, output, *AUTO) == 0
    said = capsys.readouterr().err.splitlines()[0]
    assert said.startswith(f"warning: {output}/checkpoint-4: {file} has ") and said.endswith("an older checkpoint")
    assert json.loads((output / "args.json").read_text())["resumed_from"] == str(output / "checkpoint-2")
    assert_ends_like_the_whole(folder, stage, output)


def test_a_run_of_damaged_checkpoints_is_not_begun_anew_by_itself(monkeypatch, folder, tmp_path, capsys):
    output = copied(folder, "sft", tmp_path / "run", [2, 4])
    for _, path in checkpoints(output):
        truncate(path / "optimizer.pt")
    files = sorted(output.rglob("*"))
    assert run(monkeypatch, "sft", folder, output, *AUTO) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: --resume_from_checkpoint auto: every checkpoint in ")
    assert "--overwrite_output_dir" in line and sorted(output.rglob("*")) == files
    assert run(monkeypatch, "sft", folder, output, "--overwrite_output_dir") == 0
    assert_ends_like_the_whole(folder, "sft", output)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("stage", SCRIPTS)
def test_another_number_of_processes_is_refused_in_one_line(monkeypatch, folder, tmp_path, capsys, stage):
    output = copied(folder, stage, tmp_path / "run", [2])
    manifest = output / "checkpoint-2" / MANIFEST
    write_json(manifest, {**json.loads(manifest.read_text()), "num_processes": 2})
    assert run(monkeypatch, stage, folder, output, *AUTO) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is of a run of 2 process(es), this one has 1" in line and "NUM_GPUS=2" in line

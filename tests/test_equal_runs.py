"""What holds for every training stage: equal runs are equal, one that was killed is, and one whose batch is split.

Two processes: test_distributed.py. Kills at any moment of any stage: tests/bench/kill.py.
"""

from __future__ import annotations

import importlib
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file
from test_distributed import curves, run_of, write_inputs

from keju.training.launch import run_guarded

pytestmark = pytest.mark.slow

STAGES = ("pretrain", "sft", "reward", "dpo", "kto", "rlhf", "grpo")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("equal")
    write_inputs(folder)
    return folder


@pytest.fixture
def run(inputs, monkeypatch):
    def run(stage: str, output, **more) -> None:
        module, *flags = run_of(inputs, output, stage, "llama", False, 1, **more)
        monkeypatch.setattr(sys, "argv", [f"{module}.py", *flags])
        assert run_guarded(importlib.import_module(f"keju.{module}").main) == 0

    return run


def weights(folder) -> dict[str, torch.Tensor]:
    names = [path.relative_to(folder) for path in folder.rglob("*.safetensors") if "checkpoint-" not in str(path)]
    assert names
    return {f"{name}: {key}": value for name in names for key, value in load_file(folder / name).items()}


def assert_equal(ours, theirs) -> None:
    """To the bit."""
    found, expected = weights(ours), weights(theirs)
    assert found.keys() == expected.keys()
    assert not [name for name in expected if not torch.equal(found[name], expected[name])]
    assert curves(ours) == curves(theirs)


@pytest.mark.parametrize("stage", STAGES)
def test_equal_runs_are_equal_and_one_that_was_killed(run, tmp_path, stage):
    """Killed after its first checkpoint: what was written later is not there."""
    run(stage, tmp_path / "whole")
    run(stage, tmp_path / "again")
    assert_equal(tmp_path / "again", tmp_path / "whole")
    killed = tmp_path / "again"
    for path in [*killed.glob("*.safetensors"), killed / "summary.json", *killed.glob("*/model.safetensors")]:
        if "checkpoint-" not in str(path):
            path.unlink()
    shutil.rmtree(killed / "checkpoint-4")
    run(stage, killed, resume_from_checkpoint="auto")
    assert_equal(killed, tmp_path / "whole")


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_whose_batch_is_split_is_equal(run, tmp_path, stage):
    """Into micro-batches of a few records, or of one; PPO and GRPO pack their batch themselves, by --token_budget."""
    if stage in ("rlhf", "grpo"):
        splits = [{"token_budget": 4096}, {"token_budget": 64}]
    else:
        splits = [
            {"per_device_train_batch_size": size, "gradient_accumulation_steps": 16 // size, "token_budget": 4096}
            for size in (16, 4, 1)
        ]
    for number, split in enumerate(splits):
        run(stage, tmp_path / str(number), save_strategy="no", **split)
    expected = curves(tmp_path / "0")
    assert len(expected["loss"]) == 4
    for number in range(1, len(splits)):
        found = curves(tmp_path / str(number))
        assert found.keys() == expected.keys()
        if stage in ("dpo", "kto"):  # at the start a margin is zero but for rounding
            expected["accuracy"][0] = found["accuracy"][0] = 0.5
        for name, numbers in expected.items():
            assert found[name] == pytest.approx(numbers, rel=1e-4, abs=2e-6), name

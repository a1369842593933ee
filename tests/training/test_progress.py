from __future__ import annotations

import io
import json
import sys

import pytest
import torch
from transformers import Trainer

from keju.records.journal import Journal
from keju.training import progress
from keju.training.arguments import StageTrainingArguments
from keju.training.crash import NonFiniteLoss
from keju.training.progress import Progress, RunCallback, clock, compact, figure, track
from keju.training.run_folder import RunFolder
from keju.training.tee import Tee


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(progress, "REDRAW_SECONDS", 0.0)
    monkeypatch.setenv("COLUMNS", "100")
    with Progress(10, "generate", unit="rows") as bar:
        bar.advance(5, tokens=1000, reward=0.25)
    drawn = sys.stderr.getvalue()
    assert "generate ████████░░░░░░░░  50% 5/10" in drawn and "left  reward 0.25" in drawn and "tokens/s" in drawn
    assert drawn.endswith("\n") and "generate: 5/10 rows in 0:00" in drawn and not Tee.bar_is_drawn


def test_a_bar_never_wraps(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(progress, "REDRAW_SECONDS", 0.0)
    monkeypatch.setenv("COLUMNS", "40")
    with Progress(10, "generate", unit="rows") as bar:
        bar.advance(5, tokens=1000, reward=0.25, kl=0.125, entropy=1.5)
        drawn = sys.stderr.getvalue()
    assert max(len(part) for part in drawn.split("\r\x1b[K")) < 40


def test_lines_in_a_pipe(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    assert list(track([7, 8], "encode")) == [7, 8]
    lines = capsys.readouterr().err.splitlines()
    assert "\r" not in "".join(lines)
    assert lines[0].startswith("encode: 1/2 rows in 0:00") and lines[-1].startswith("encode: 2/2 rows in 0:00")


def test_an_unknown_total(capsys):
    assert list(track(iter("ab"), "read")) == ["a", "b"]
    assert capsys.readouterr().err.startswith("read: 2 rows")


def test_other_ranks_are_silent(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "3")
    list(track([1], "x"))
    assert capsys.readouterr().err == ""


def test_time_left():
    bar = Progress(100, "x", done=50)
    bar.done = 60
    assert bar._left(20.0) == 80.0  # steps of before a resume do not count as speed


def test_numbers():
    assert [clock(5), clock(75), clock(3725)] == ["0:05", "1:15", "1:02:05"]
    assert [compact(12), compact(1234), compact(5.6e6)] == ["12", "1.23k", "5.6M"]
    assert [figure(2.31415), figure(1e-5), figure(7), figure(0.0), figure("x")] == ["2.314", "1.00e-05", "7", "0", "x"]


class Line(torch.nn.Module):
    """One weight; its loss becomes NaN from the step that `breaks_at` names."""

    def __init__(self, breaks_at=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.calls, self.breaks_at = 0, breaks_at

    def forward(self, x, labels=None):
        self.calls += self.training
        loss = (self.weight * x - 1).pow(2).mean()
        return {"loss": loss * float("nan") if self.calls == self.breaks_at else loss}


class CountingTrainer(Trainer):
    def log(self, logs, start_time=None):
        if "loss" in logs:
            logs["num_tokens"] = 100 * self.state.global_step
        super().log(logs, start_time)


def train(tmp_path, model, **options):
    run = RunFolder(tmp_path / "run", "sft", argv=[])
    arguments = StageTrainingArguments(
        output_dir=str(run.path), per_device_train_batch_size=4, logging_steps=2, use_cpu=True, learning_rate=0.01,
        save_strategy="no", **options,
    )  # fmt: skip
    rows = [{"x": torch.full((1,), 2.0), "labels": 0} for _ in range(24)]
    trainer = CountingTrainer(model, arguments, train_dataset=rows, eval_dataset=rows[:4], callbacks=[RunCallback(run)])
    try:
        trainer.train()
        return run, run.finish()
    finally:
        run.close()


def test_metrics_of_a_trainer(tmp_path):
    run, summary = train(tmp_path, Line(), eval_strategy="steps", eval_steps=4)
    rows = list(Journal(run.metrics_path).read())
    trained = [row for row in rows if "loss" in row]
    assert [row["step"] for row in trained] == [1, 2, 4, 6]
    assert [row["step"] for row in rows if "eval_loss" in row] == [4, 6][: len(rows) - len(trained)]
    assert all(row["tokens_per_second"] > 0 and row["elapsed"] >= 0 for row in trained)
    assert trained[-1]["loss"] < trained[0]["loss"]
    assert summary["steps"] == 6 and summary["tokens"] == 600 and summary["last_loss"] == trained[-1]["loss"]
    log = run.log_path.read_text()
    assert "step 2/6: loss" in log and "sft: 6/6 steps" in log and "█" not in log


def test_a_nan_stops_the_run_and_names_the_step(tmp_path):
    with pytest.raises(NonFiniteLoss, match="at step 4"):
        train(tmp_path, Line(breaks_at=3))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 4 and rows[-1]["loss"] is None
    assert not (tmp_path / "run" / "summary.json").exists()

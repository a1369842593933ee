from __future__ import annotations

import errno
import json
import os

import numpy as np
import pytest

from keju.training.plots import (
    metric_series,
    plot_bars,
    plot_histograms,
    plot_loss,
    plot_over_seeds,
    plot_panels,
    smooth,
)


def ink(png) -> float:
    """Share of pixels that are not white; also shows that the file is a whole picture."""
    from matplotlib.image import imread

    return float((imread(png)[..., :3].min(axis=-1) < 0.99).mean())


def write_metrics(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("count", [0, 1, 3, 200])
def test_loss_of_any_length(tmp_path, count):
    rows = [{"step": i, "loss": None if i == 2 else 2 / (i + 1), "learning_rate": 1e-4} for i in range(count)]
    plot_loss(write_metrics(tmp_path / "m.jsonl", [*rows, {"step": count, "eval_loss": 1.0}]), tmp_path / "loss.png")
    assert ink(tmp_path / "loss.png") > 0.01


def test_panels_of_columns_with_gaps_and_marks(tmp_path):
    rows = [{"step": step, "kl": 0.1 * step, "reward": None if step == 2 else 1.0} for step in range(1, 6)]
    path = write_metrics(tmp_path / "m.jsonl", rows)
    panels = {"a": ("kl", "absent"), "b": ("reward",), "nothing": ("absent",)}
    plot_panels(path, tmp_path / "deep" / "x.png", panels, marks={"alarm": [2, 4]})
    plot_panels(path, tmp_path / "deep" / "plain.png", panels)
    assert ink(tmp_path / "deep" / "x.png") > ink(tmp_path / "deep" / "plain.png") > 0.005


def test_runs_over_seeds_as_far_as_all_of_them_go(tmp_path):
    rows = [{"step": step, "reward": float(step)} for step in range(1, 9)]
    plot_over_seeds({"a": [rows, rows[:5]], "b": [rows], "none": []}, tmp_path / "x.png", {"t": "reward", "u": "kl"})
    assert ink(tmp_path / "x.png") > 0.005


@pytest.mark.parametrize(
    "groups", [{}, {"none": []}, {"same": [1.0, 1.0]}, {"a": [1, 2, float("nan")], "b": np.ones(3)}]
)
def test_histograms_of_odd_groups(tmp_path, groups):
    plot_histograms(groups, tmp_path / "x.png", title="t", xlabel="x")
    assert ink(tmp_path / "x.png") > 0.005


def test_bars_with_errors_and_chance(tmp_path):
    errors = {"a": 0.1, "b": (0.05, 0.1)}
    plot_bars({"a": 0.3, "b": 0.6, "c": 0.0}, tmp_path / "x.png", title="t", errors=errors, chance=0.25)
    assert ink(tmp_path / "x.png") > 0.05


def test_metric_series_skips_rows_without_the_number():
    rows = [{"step": 1, "loss": 1.0}, {"step": 2, "eval_loss": 3.0}, {"step": 3, "loss": None}]
    assert metric_series(rows, "loss") == ([1], [1.0])


def test_smooth():
    assert smooth([1, 1, 1, 1], 3) == [1, 1, 1, 1]
    assert smooth([3, 0, 3, 0], 3) == [3, 2, 1, 1.5]


def test_a_full_disk_leaves_the_old_picture(tmp_path, monkeypatch):
    plot_bars({"a": 1}, tmp_path / "x.png", title="t")
    before = (tmp_path / "x.png").read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        plot_bars({"a": 2}, tmp_path / "x.png", title="t")
    assert (tmp_path / "x.png").read_bytes() == before and len(list(tmp_path.iterdir())) == 1

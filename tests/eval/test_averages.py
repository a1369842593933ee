"""Figures of subjects, categories and benchmarks, by hand."""

from __future__ import annotations

import math
import random

import pytest

from keju.eval.averages import benchmark_figures, figure
from keju.eval.statistics import Z, macro_interval, mean_interval, wilson_interval
from keju.eval.task import load_task

CREDITS = [("law", 1.0), ("law", 1.0), ("law", 0.0), ("law", 0.0), ("logic", 1.0), ("high_school_physics", 0.25)]


def test_micro_counts_questions_and_macro_subjects():
    micro, macro = figure(CREDITS, "micro"), figure(CREDITS, "macro")
    assert micro["value"] == pytest.approx(3.25 / 6) and macro["value"] == pytest.approx((0.5 + 1 + 0.25) / 3)
    assert micro["num_items"] == macro["num_items"] == 6
    assert (micro["low"], micro["high"]) == wilson_interval(3.25, 6)
    assert (macro["low"], macro["high"]) == macro_interval([(2.0, 4), (1.0, 1), (0.25, 1)])


def test_a_benchmark_has_figures_of_all_its_parts():
    task = load_task("ceval")
    figures = benchmark_figures(task, "macro", {"acc": CREDITS, "acc_norm": CREDITS[::-1]}, "acc")
    assert figures["micro"]["value"] == pytest.approx(3.25 / 6)
    assert figures["macro"] == figures["metrics"]["acc"] == figure(CREDITS, "macro")
    assert {name: part["value"] for name, part in figures["categories"].items()} == {"STEM": 0.25, "Humanities": 0.75}
    assert figures["subsets"]["hard"]["num_items"] == 1
    assert figures["subjects"]["law"] == {**figure(CREDITS[:4], "micro"), "category": "Humanities"}
    over_questions = benchmark_figures(task, "micro", {"acc": CREDITS}, "acc")
    assert over_questions["categories"]["Humanities"]["value"] == pytest.approx(3 / 5)
    assert "subjects" not in benchmark_figures(load_task("ocnli"), "micro", {"acc": [("", 1.0)]}, "acc")


def test_degrees_have_an_interval_of_their_spread():
    values = [("", value) for value in (0.1, 0.9, 0.4, 0.4)]
    found = figure(values, "micro", graded=True)
    mean = 0.45
    deviation = math.sqrt(sum((value - mean) ** 2 for _, value in values) / 3)
    assert found["low"] == pytest.approx(mean - Z * deviation / 2)
    assert found["high"] == pytest.approx(mean + Z * deviation / 2)
    assert mean_interval([1.0]) == wilson_interval(1, 1) and mean_interval([0.0] * 9) == wilson_interval(0, 9)
    figures = benchmark_figures(load_task("cmrc2018"), "micro", {"f1": values, "em": values}, "f1")
    assert figures["metrics"]["f1"] == figures["micro"] == found != figures["metrics"]["em"]


def test_the_macro_interval_covers_the_truth_as_often_as_it_says():
    """Subjects of 5 to 20 questions with chances of their own; also where all of a subject is right."""
    rng = random.Random(0)
    chances = [rng.uniform(0.1, 0.95) for _ in range(30)]
    sizes = [rng.randint(5, 20) for _ in chances]
    covered = 0
    for _ in range(400):
        groups = [(float(sum(rng.random() < p for _ in range(n))), n) for p, n in zip(chances, sizes, strict=True)]
        low, high = macro_interval(groups)
        covered += low <= sum(chances) / len(chances) <= high
    assert 0.92 <= covered / 400 <= 0.99
    assert macro_interval([(5.0, 5), (5.0, 5)]).low < 1

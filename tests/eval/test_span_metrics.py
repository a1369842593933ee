"""F1 and exact match by hand, by the rules of CMRC 2018."""

from __future__ import annotations

import random

import pytest

from keju.eval.span_metrics import longest_common_run, span_scores, split_units


def test_units_are_characters_and_foreign_words():
    assert split_units("光荣和ω-force") == ["光", "荣", "和", "ωforce"]
    assert split_units(" iPhone 6s，3.5%的NBA's ") == ["iphone", "6s3.5", "%", "的", "nba", "'s"]
    assert split_units("《战国》（无双）……、·") == ["战", "国", "无", "双", "……"]
    assert split_units("") == split_units("。，") == []


@pytest.mark.parametrize(
    ("answer", "reference", "f1", "em"),
    [
        ("光荣", "光荣", 1.0, 1.0),
        ("《光荣》。", "光荣", 1.0, 1.0),
        ("Koei", "KOEI", 1.0, 1.0),
        ("是光荣公司", "光荣", 2 * (2 / 5) * 1 / (2 / 5 + 1), 0.0),
        # What both have stands in two pieces: the longer one counts, not the sum.
        ("甲乙丙丁戊", "甲乙戊己", 2 * (2 / 5) * (2 / 4) / (2 / 5 + 2 / 4), 0.0),
        ("丁", "甲乙丙", 0.0, 0.0),
        ("", "甲", 0.0, 0.0),
    ],
)
def test_scores_by_hand(answer, reference, f1, em):
    assert span_scores(answer, [reference]) == {"f1": pytest.approx(f1), "em": em}


def test_the_best_reference_counts():
    assert span_scores("甲乙", ["丙", "甲乙丙", "甲"]) == {"f1": pytest.approx(0.8), "em": 0.0}


def test_common_runs_equal_all_pairs_of_slices():
    rng = random.Random(0)
    for _ in range(50):
        first, second = ([rng.choice("甲乙丙") for _ in range(rng.randint(0, 9))] for _ in range(2))
        slices = {tuple(second[a:b]) for a in range(len(second)) for b in range(a + 1, len(second) + 1)}
        expected = max(
            (b - a for a in range(len(first)) for b in range(a + 1, len(first) + 1) if tuple(first[a:b]) in slices),
            default=0,
        )
        assert longest_common_run(first, second) == expected

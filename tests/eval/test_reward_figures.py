"""Figures of a reward model against numbers computed by hand."""

from __future__ import annotations

import math

import pytest

from keju.eval.reward_figures import RankedAnswers, histogram, reward_figures, rewards_by_score


def test_pairs_with_equal_scores_are_not_compared():
    pairs = RankedAnswers((1, 0, 0, -1), (2.0, 3.0, 0.0, 0.0)).pairs()
    assert sorted(pair.margin for pair in pairs) == [-1.0, 0.0, 2.0, 2.0, 3.0]


def test_figures_by_hand():
    records = [
        RankedAnswers((1, 0, 0, -1), (2.0, 3.0, 0.0, 0.0)),  # margins -1, 2, 2, 3, 0: three right, one tie
        RankedAnswers((0, 1), (-1.0, 1.0)),  # margin 2
        RankedAnswers((1, 1), (5.0, 6.0)),  # nothing to compare
    ]
    figures = reward_figures(records)
    assert figures["num_pairs"] == 6
    assert figures["num_prompts"] == 2
    assert figures["accuracy"] == pytest.approx(4.5 / 6)
    assert figures["margin"]["mean"] == pytest.approx(8 / 6)
    losses = [math.log(1 + math.exp(-margin)) for margin in (-1, 2, 2, 3, 0, 2)]
    assert figures["loss"] == pytest.approx(sum(losses) / 6)
    assert figures["best_first"] == pytest.approx(0.5)
    assert figures["best_first_chance"] == pytest.approx((1 / 4 + 1 / 2) / 2)
    assert figures["accuracy_by_scores"] == {
        "1 > 0": {"accuracy": pytest.approx(2 / 3), "count": 3},
        "1 > -1": {"accuracy": 1.0, "count": 1},
        "0 > -1": {"accuracy": pytest.approx(0.75), "count": 2},
    }
    assert figures["rewards_by_score"]["1"]["count"] == 4
    assert figures["rewards_by_score"]["0"]["mean"] == pytest.approx(2 / 3)
    low, high = figures["interval"]
    assert 0 < low < 0.75 < high < 1


def test_a_model_without_an_opinion_is_at_chance():
    figures = reward_figures([RankedAnswers((1, 0, 0, -1), (0.5,) * 4)] * 3)
    assert figures["accuracy"] == 0.5
    assert figures["best_first"] == figures["best_first_chance"] == 0.25
    assert figures["loss"] == pytest.approx(math.log(2))


def test_huge_margins_do_not_overflow():
    assert reward_figures([RankedAnswers((1, 0), (-1e4, 1e4))])["loss"] == pytest.approx(2e4)


def test_histograms_share_their_edges():
    groups = rewards_by_score([RankedAnswers((1, 0), (1.0, 0.0)), RankedAnswers((1, 0), (4.0, 1.0))])
    assert groups == {"1": [1.0, 4.0], "0": [0.0, 1.0]}
    bars = histogram(groups, bins=4)
    assert bars == {"edges": [0, 1, 2, 3, 4], "counts": {"1": [0, 1, 0, 1], "0": [1, 1, 0, 0]}}


def test_nothing_to_compare_is_an_error():
    with pytest.raises(ValueError, match="same score"):
        reward_figures([RankedAnswers((1, 1), (0.0, 1.0))])

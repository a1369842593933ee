"""Every loss against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from keju.losses.pairs import ordered_pairs
from keju.losses.preference import preference_loss, uses_average
from keju.losses.reward import last_token_loss, span_loss

NAN = math.nan


def test_all_ordered_pairs_within_a_tree_and_none_of_ties():
    scores = torch.tensor([NAN, 3.0, 1.0, 5.0, NAN, 2.0, 2.0, 1.0])
    tree = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    winner, loser = ordered_pairs(scores, tree)
    # unsorted [3, 1, 5]: three pairs, all the right way round; [2, 2, 1]: two pairs, none between the equals
    assert set(zip(winner.tolist(), loser.tolist(), strict=True)) == {(1, 2), (3, 1), (3, 2), (5, 7), (6, 7)}


def test_last_token_loss():
    loss = last_token_loss(torch.tensor([2.0, 0.0, -50.0]), torch.tensor([1.0, 0.0, 50.0]))
    # log(1 + e^-1), log 2, and 100 where log(sigmoid(x)) would be infinite
    torch.testing.assert_close(loss, torch.tensor([0.3132617, 0.6931472, 100.0]))
    assert last_token_loss(torch.tensor([2.0]), torch.tensor([1.0]), margin=1.0).item() == pytest.approx(math.log(2))


def test_span_loss_begins_at_the_first_difference_and_ends_with_the_longer_answer():
    winner_ids = torch.tensor([[5, 6, 7, -1]])
    loser_ids = torch.tensor([[5, 8, 2, 4]])
    winner = torch.tensor([[9.0, 1.0, 2.0, 2.0]])  # its last value repeated
    loser = torch.tensor([[-9.0, 0.0, 2.0, 3.0]])
    expected = (math.log(1 + math.exp(-1)) + math.log(2) + math.log(1 + math.exp(1))) / 3
    assert span_loss(winner, loser, winner_ids, loser_ids).item() == pytest.approx(expected)


def test_span_loss_of_identical_answers_compares_their_last_token():
    ids = torch.tensor([[5, 6, -1]])
    values = torch.tensor([[4.0, 1.0, 1.0]])
    loss = span_loss(values, torch.zeros(1, 3), ids, ids)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)))


def test_preference_losses():
    winner, loser = torch.tensor([3.0, -1.0]), torch.tensor([1.0, 1.0])  # differences 2 and -2
    softplus = lambda x: math.log(1 + math.exp(x))  # noqa: E731
    beta = 0.5
    sigmoid = preference_loss(winner, loser, beta=beta)
    torch.testing.assert_close(sigmoid, torch.tensor([softplus(-1), softplus(1)]))
    smoothed = preference_loss(winner, loser, beta=beta, label_smoothing=0.25)
    torch.testing.assert_close(
        smoothed, torch.tensor([0.75 * softplus(-1) + 0.25 * softplus(1), 0.75 * softplus(1) + 0.25 * softplus(-1)])
    )
    # (d - 1 / (2 * 0.5))^2
    assert preference_loss(winner, loser, beta=beta, loss_type="ipo").tolist() == [1.0, 9.0]
    assert preference_loss(winner, loser, beta=beta, loss_type="hinge").tolist() == [0.0, 2.0]
    assert uses_average("ipo") and not uses_average("sigmoid")
    with pytest.raises(ValueError, match="--loss_type nope: choose from sigmoid, ipo, hinge"):
        preference_loss(winner, loser, loss_type="nope")

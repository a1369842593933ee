"""Every loss against numbers worked out by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from keju.losses.pairs import ordered_pairs
from keju.losses.reward import centering_loss, last_token_loss, plackett_luce_losses, span_loss

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


def test_last_token_loss_with_margin_and_smoothing():
    winner, loser = torch.tensor([2.0]), torch.tensor([0.5])
    softplus = lambda x: math.log(1 + math.exp(x))  # noqa: E731
    expected = 0.9 * softplus(-1.0) + 0.1 * softplus(1.0)  # 2 - 0.5 - 0.5
    assert last_token_loss(winner, loser, 0.5, label_smoothing=0.1).item() == pytest.approx(expected)


def test_centering():
    assert centering_loss(torch.tensor([1.0, 2.0]), torch.tensor([-1.0, 1.0])).tolist() == [0.0, 9.0]


def test_plackett_luce_is_the_likelihood_of_a_ranking():
    rewards = torch.tensor([9.0, 0.3, -1.0, 2.0, 9.0, 0.5, 1.0])
    scores = torch.tensor([NAN, 2.0, 1.0, 3.0, NAN, 1.0, 0.0])
    tree = torch.tensor([0, 0, 0, 0, 1, 1, 1])
    losses = plackett_luce_losses(rewards, scores, tree)
    # ranking of the first prompt: 2.0, 0.3, -1.0; of the second: 0.5, 1.0 (Bradley-Terry)
    first = math.exp(2.0) / (math.exp(2.0) + math.exp(0.3) + math.exp(-1.0))
    second = math.exp(0.3) / (math.exp(0.3) + math.exp(-1.0))
    pair = math.exp(0.5) / (math.exp(0.5) + math.exp(1.0))
    assert losses.sum().item() == pytest.approx(-math.log(first) - math.log(second) - math.log(pair), rel=1e-5)
    # over all orders of three answers the probabilities add up to 1
    total = 0.0
    for order in itertools.permutations([3.0, 2.0, 1.0]):
        found = plackett_luce_losses(rewards[1:4], torch.tensor(order), torch.zeros(3, dtype=torch.long))
        total += math.exp(-found.sum().item())
    assert total == pytest.approx(1.0, rel=1e-5)


def test_plackett_luce_does_not_compare_equals():
    rewards = torch.tensor([1.0, 3.0, 0.0], requires_grad=True)
    scores = torch.tensor([1.0, 1.0, 0.0])
    losses = plackett_luce_losses(rewards, scores, torch.zeros(3, dtype=torch.long))
    expected = [math.log(1 + math.exp(-1.0)), math.log(1 + math.exp(-3.0))]  # each against the last alone
    torch.testing.assert_close(losses, torch.tensor(expected))
    losses.sum().backward()
    assert torch.isfinite(rewards.grad).all()
    huge = plackett_luce_losses(torch.tensor([1e4, -1e4]), torch.tensor([0.0, 1.0]), torch.zeros(2, dtype=torch.long))
    assert huge.tolist() == [2e4]

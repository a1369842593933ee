"""Which answers of a batch are compared with which."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Pairs(NamedTuple):
    """int64 [P] each: segments of the better and of the worse answer."""

    winner: torch.Tensor
    loser: torch.Tensor


def num_right(margins: torch.Tensor) -> torch.Tensor:
    """Of pairs with these margins [P], how many are in the right order, []; equal ones are so by halves, by chance."""
    return (margins > 0).float().sum() + 0.5 * (margins == 0).float().sum()


def ordered_pairs(scores: torch.Tensor, tree: torch.Tensor) -> Pairs:
    """All ordered pairs of answers of one prompt with different scores: up to K (K - 1) / 2 of K answers (InstructGPT,
    arXiv 2203.02155, section 3.5), not the K - 1 neighbours.

    scores float [S] (NaN: the segment is no ranked answer), tree int64 [S]. Ties give no pair.
    """
    better = (tree[:, None] == tree[None, :]) & (scores[:, None] > scores[None, :])
    winner, loser = better.nonzero(as_tuple=True)
    return Pairs(winner, loser)

"""Losses of the reward model: per pair of answers, or per ranking."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from keju.losses.smoothing import smoothed_logistic

LOSS_TYPES = ("last", "span", "plackett_luce")


def last_token_loss(
    winner: Tensor, loser: Tensor, margin: Tensor | float = 0.0, label_smoothing: float = 0.0
) -> Tensor:
    """-log sigmoid(s_w - s_l - margin) of the scores at the answers' last tokens, [P] each -> [P].

    Bradley-Terry, as in InstructGPT (arXiv 2203.02155, equation 1); the margin as in Llama 2 (arXiv 2307.09288, eq. 2).
    label_smoothing: chance that a pair is the wrong way round.
    """
    return smoothed_logistic(winner - loser - margin, label_smoothing)


def centering_loss(winner: Tensor, loser: Tensor) -> Tensor:
    """(s_w + s_l)^2, [P]: keeps scores around 0 (Eisenstein et al. 2023, arXiv 2312.09244, appendix A)."""
    return (winner + loser).square()


def span_loss(winner: Tensor, loser: Tensor, winner_ids: Tensor, loser_ids: Tensor) -> Tensor:
    """DeepSpeed-Chat's loss: the mean of -log sigmoid(v_w[t] - v_l[t]) from the first token where the answers differ to
    the end of the longer one.

    winner, loser: float [P, L] values of the answers' tokens; beyond an answer's end they must repeat the value of its
    last token (DeepSpeed-Chat compares with the values of pad tokens there, and so trains those).
    winner_ids, loser_ids: int64 [P, L], negative beyond the end. Identical answers are compared at their last token.
    Returns [P].
    """
    present = (winner_ids >= 0) | (loser_ids >= 0)
    differs = winner_ids != loser_ids
    last = present.long().cumsum(1) == present.sum(1, keepdim=True)
    # True from the first difference on; for identical answers only at the last token
    span = torch.where(differs.any(1, keepdim=True), differs.long().cumsum(1) > 0, last) & present
    return -(F.logsigmoid(winner - loser) * span).sum(1) / span.sum(1)


def plackett_luce_losses(rewards: Tensor, scores: Tensor, tree: Tensor) -> Tensor:
    """-log probability of each answer being chosen before all that are ranked below it, [A], for answers with such.

    Summed over a prompt's answers this is the Plackett-Luce likelihood of its ranking: sum_k log(e^s_k / sum_(j >= k)
    e^s_j) (Plackett 1975; K-wise in Zhu et al. 2023, arXiv 2301.11270). Answers with equal scores are not compared with
    each other. For two answers it is Bradley-Terry.

    rewards float [S], scores float [S] (NaN: the segment is no ranked answer), tree int64 [S].
    """
    below = (tree[:, None] == tree[None, :]) & (scores[:, None] > scores[None, :])
    chosen = below.any(dim=1)
    choices = below | torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    against = torch.where(choices, rewards[None, :], -torch.inf)[chosen]
    return against.logsumexp(dim=1) - rewards[chosen]

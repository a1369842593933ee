"""Losses of the reward model, per pair of answers."""

from __future__ import annotations

import torch
import torch.nn.functional as F

LOSS_TYPES = ("last", "span")


def last_token_loss(winner: torch.Tensor, loser: torch.Tensor, margin: torch.Tensor | float = 0.0) -> torch.Tensor:
    """-log sigmoid(s_w - s_l - margin) of the scores at the answers' last tokens, [P] each -> [P].

    Bradley-Terry, as in InstructGPT (arXiv 2203.02155, equation 1); the margin as in Llama 2 (arXiv 2307.09288, eq. 2).
    """
    return -F.logsigmoid(winner - loser - margin)


def span_loss(
    winner: torch.Tensor, loser: torch.Tensor, winner_ids: torch.Tensor, loser_ids: torch.Tensor
) -> torch.Tensor:
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

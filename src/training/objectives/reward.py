"""Reward model: all ordered pairs of a prompt's ranked answers, from one pass over its tree."""

from __future__ import annotations

import torch
from torch import nn

from keju.losses.pairs import ordered_pairs
from keju.losses.reward import LOSS_TYPES, last_token_loss, span_loss
from keju.models.backbone import tree_token_scores
from keju.training.objectives.objective import ObjectiveOutput
from keju.trees.packed_batch import PackedBatch


class RewardObjective:
    """loss_type: "last" (scores at the answers' last tokens) or "span" (DeepSpeed-Chat: from the divergence on)."""

    item_name = "pair"

    def __init__(self, loss_type: str = "last") -> None:
        if loss_type not in LOSS_TYPES:
            raise ValueError(f"--loss_type {loss_type}: choose from {', '.join(LOSS_TYPES)}")
        self.loss_type = loss_type

    def num_items(self, batch: PackedBatch) -> int:
        return len(ordered_pairs(batch.values["score"], batch.segment_tree).winner)

    def __call__(self, model: nn.Module, batch: PackedBatch) -> ObjectiveOutput:
        token_scores = tree_token_scores(model, batch)[:, 0]
        winner, loser = ordered_pairs(batch.values["score"], batch.segment_tree)
        scores = token_scores[batch.segment_end - 1]  # an answer's score: at its last token
        if self.loss_type == "last":
            losses = last_token_loss(scores[winner], scores[loser])
        else:
            values, ids = _rows(token_scores, batch)
            losses = span_loss(values[winner], values[loser], ids[winner], ids[loser])
        with torch.no_grad():
            margin = scores[winner] - scores[loser]
            metrics = {
                "accuracy": ((margin > 0).float().sum(), len(margin)),
                "margin": (margin.sum(), len(margin)),
                "reward_chosen": (scores[winner].sum(), len(margin)),
                "reward_rejected": (scores[loser].sum(), len(margin)),
            }
        return ObjectiveOutput(losses.sum(), metrics)


def _rows(token_scores: torch.Tensor, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """One row a segment, [S, L]: its tokens' scores, the last one repeated beyond its end; its ids, -1 beyond it."""
    length = batch.segment_end - batch.segment_start
    offset = torch.arange(int(length.max()), device=length.device)[None, :]
    index = batch.segment_start[:, None] + torch.minimum(offset, (length - 1).clamp(min=0)[:, None])
    index = index.clamp(max=batch.num_tokens - 1)
    ids = batch.input_ids[0][index].masked_fill(offset >= length[:, None], -1)
    return token_scores[index], ids

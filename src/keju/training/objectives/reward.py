"""Reward model: all ordered pairs of a prompt's ranked answers, from one pass over its tree."""

from __future__ import annotations

import torch
from torch import nn

from keju.errors import UserError
from keju.losses.pairs import num_right, ordered_pairs
from keju.losses.reward import LOSS_TYPES, centering_loss, last_token_loss, plackett_luce_losses, span_loss
from keju.models.backbone import tree_token_scores
from keju.training.objectives.objective import Objective, ObjectiveOutput
from keju.training.whole_batch import WholeBatch
from keju.trees.packed_batch import PackedBatch


class RewardObjective(Objective):
    """loss_type: "last" (scores at the answers' last tokens), "span" (DeepSpeed-Chat: from the divergence on) or
    "plackett_luce" (the ranking of a prompt's answers as a whole).

    margin_coef: pairs must differ by so much times the difference of their scores; label_smoothing: chance that a pair
    is the wrong way round (both: "last" alone). center_coef: weight of (s_w + s_l)^2.
    """

    metric_names = ("accuracy", "margin", "reward_chosen", "reward_rejected")

    def __init__(
        self,
        loss_type: str = "last",
        *,
        margin_coef: float = 0.0,
        label_smoothing: float = 0.0,
        center_coef: float = 0.0,
    ) -> None:
        if loss_type not in LOSS_TYPES:
            raise UserError(f"{loss_type}: choose from {', '.join(LOSS_TYPES)}", option="loss_type")
        for option, value in (("margin_coef", margin_coef), ("label_smoothing", label_smoothing)):
            if value and loss_type != "last":
                raise UserError(f"has no effect with --loss_type {loss_type}", option=option)
        if not 0 <= label_smoothing < 0.5:
            raise UserError(f"must be at least 0 and below 0.5, got {label_smoothing}", option="label_smoothing")
        if center_coef and loss_type == "plackett_luce":
            raise UserError("is for pairs, not for --loss_type plackett_luce", option="center_rewards_coefficient")
        self.loss_type = loss_type
        self.margin_coef, self.label_smoothing, self.center_coef = margin_coef, label_smoothing, center_coef
        self.item_name = "ranking" if loss_type == "plackett_luce" else "pair"

    def num_items(self, batch: PackedBatch) -> int:
        winner = ordered_pairs(batch.values["score"], batch.segment_tree).winner
        return len(batch.segment_tree[winner].unique() if self.loss_type == "plackett_luce" else winner)

    def __call__(self, model: nn.Module, batch: PackedBatch, whole: WholeBatch | None = None) -> ObjectiveOutput:
        token_scores = tree_token_scores(model, batch)[:, 0]
        winner, loser = ordered_pairs(batch.values["score"], batch.segment_tree)
        scores = token_scores[batch.segment_end - 1]  # an answer's score: at its last token
        if self.loss_type == "last":
            ranks = batch.values["score"]
            margin = self.margin_coef * (ranks[winner] - ranks[loser])
            losses = last_token_loss(scores[winner], scores[loser], margin, self.label_smoothing)
        elif self.loss_type == "span":
            values, ids = _rows(token_scores, batch)
            losses = span_loss(values[winner], values[loser], ids[winner], ids[loser])
        else:
            losses = plackett_luce_losses(scores, batch.values["score"], batch.segment_tree)
        loss = losses.sum()
        if self.center_coef:
            loss = loss + self.center_coef * centering_loss(scores[winner], scores[loser]).sum()
        with torch.no_grad():
            margin = scores[winner] - scores[loser]
            metrics = {
                "accuracy": (num_right(margin), len(margin)),
                "margin": (margin.sum(), len(margin)),
                "reward_chosen": (scores[winner].sum(), len(margin)),
                "reward_rejected": (scores[loser].sum(), len(margin)),
            }
        return ObjectiveOutput(loss, metrics)


def _rows(token_scores: torch.Tensor, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """One row a segment, [S, L]: its tokens' scores, the last one repeated beyond its end; its ids, -1 beyond it."""
    length = batch.segment_end - batch.segment_start
    offset = torch.arange(int(length.max()), device=length.device)[None, :]
    index = batch.segment_start[:, None] + torch.minimum(offset, (length - 1).clamp(min=0)[:, None])
    index = index.clamp(max=batch.num_tokens - 1)
    ids = batch.input_ids[0][index].masked_fill(offset >= length[:, None], -1)
    return token_scores[index], ids

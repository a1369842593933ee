"""DPO and its relatives: all ordered pairs of a prompt's ranked answers, from one pass over its tree."""

from __future__ import annotations

import torch
from torch import nn

from keju.losses.pairs import ordered_pairs
from keju.losses.preference import LOSS_TYPES, preference_loss, uses_average
from keju.models.backbone import tree_logprobs
from keju.training.objectives.objective import ObjectiveOutput
from keju.trees.packed_batch import PackedBatch


class PreferenceObjective:
    """Expects each answer's `score` and, unless `reference_free`, its summed `ref_logprob` in the trees."""

    item_name = "pair"

    def __init__(
        self,
        beta: float = 0.1,
        loss_type: str = "sigmoid",
        label_smoothing: float = 0.0,
        reference_free: bool = False,
    ) -> None:
        if loss_type not in LOSS_TYPES:
            raise ValueError(f"--loss_type {loss_type}: choose from {', '.join(LOSS_TYPES)}")
        if label_smoothing and loss_type != "sigmoid":
            raise ValueError(f"--label_smoothing has no effect with --loss_type {loss_type}")
        self.beta, self.loss_type, self.label_smoothing = beta, loss_type, label_smoothing
        self.reference_free = reference_free

    def num_items(self, batch: PackedBatch) -> int:
        return len(ordered_pairs(batch.values["score"], batch.segment_tree).winner)

    def __call__(self, model: nn.Module, batch: PackedBatch) -> ObjectiveOutput:
        logprobs = segment_logprobs(model, batch)
        winner, loser = ordered_pairs(batch.values["score"], batch.segment_tree)
        ratios = logprobs if self.reference_free else logprobs - batch.values["ref_logprob"]
        compared = ratios
        if uses_average(self.loss_type):
            compared = ratios / batch.target_segment.bincount(minlength=batch.num_segments).clamp(min=1)
        losses = preference_loss(
            compared[winner],
            compared[loser],
            beta=self.beta,
            loss_type=self.loss_type,
            label_smoothing=self.label_smoothing,
        )
        with torch.no_grad():
            rewards = self.beta * ratios
            margin = rewards[winner] - rewards[loser]
            metrics = {
                "accuracy": ((margin > 0).float().sum(), len(margin)),
                "margin": (margin.sum(), len(margin)),
                "reward_chosen": (rewards[winner].sum(), len(margin)),
                "reward_rejected": (rewards[loser].sum(), len(margin)),
                "logprob_chosen": (logprobs[winner].sum(), len(margin)),
                "logprob_rejected": (logprobs[loser].sum(), len(margin)),
            }
        return ObjectiveOutput(losses.sum(), metrics)


def segment_logprobs(model: nn.Module, batch: PackedBatch) -> torch.Tensor:
    """float32 [S]: the log-probability of each segment's predicted tokens, summed."""
    logprobs = tree_logprobs(model, batch).logprobs
    return logprobs.new_zeros(batch.num_segments).index_add(0, batch.target_segment, logprobs)

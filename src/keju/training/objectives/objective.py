"""What a stage optimises, as an object: the loss of one packed batch, summed over its items."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import nn

from keju.training.whole_batch import WholeBatch
from keju.trees.packed_batch import PackedBatch


class ObjectiveOutput(NamedTuple):
    """loss_sum: [], the loss summed over the batch's items. metrics: name -> (sum, count), for averages over a log."""

    loss_sum: torch.Tensor
    metrics: dict[str, tuple[torch.Tensor, torch.Tensor | int]]


class Objective:
    """item_name: what the loss is averaged over, "token" or "pair".

    facts_from: what `facts` looks at, "nothing" where a loss is a sum over items that know nothing of each other.
    """

    item_name: str
    metric_names: tuple[str, ...]  # of ObjectiveOutput.metrics
    facts_from: Literal["nothing", "batch", "model"] = "nothing"

    def num_items(self, batch: PackedBatch) -> int:
        """How many items the batch holds; the trainer divides by the sum of these over the whole global batch."""
        raise NotImplementedError

    def facts(self, model: nn.Module | None, batch: PackedBatch) -> torch.Tensor:
        """float [rows, columns]: what the other packs of a step must know of this one. model: None where facts_from is
        "batch"."""
        raise NotImplementedError

    def __call__(self, model: nn.Module, batch: PackedBatch, whole: WholeBatch | None = None) -> ObjectiveOutput:
        """whole: what to know of the other packs; None where there are none, or facts_from is "nothing"."""
        raise NotImplementedError

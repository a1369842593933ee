"""What a stage optimises, as an object: the loss of one packed batch, summed over its items."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import nn

from keju.trees.packed_batch import PackedBatch


class ObjectiveOutput(NamedTuple):
    """loss_sum: [], the loss summed over the batch's items. metrics: name -> (sum, count), for averages over a log."""

    loss_sum: torch.Tensor
    metrics: dict[str, tuple[torch.Tensor, torch.Tensor | int]]


class Objective(Protocol):
    item_name: str  # what the loss is averaged over: "token" or "pair"
    metric_names: tuple[str, ...]  # of ObjectiveOutput.metrics

    def num_items(self, batch: PackedBatch) -> int:
        """How many items the batch holds; the trainer divides by the sum of these over the whole global batch."""

    def __call__(self, model: nn.Module, batch: PackedBatch) -> ObjectiveOutput: ...

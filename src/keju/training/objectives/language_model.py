"""Pretraining and SFT: the loss of every predicted token, times its weight where records give weights."""

from __future__ import annotations

from torch import nn

from keju.models.backbone import tree_cross_entropy
from keju.training.objectives.objective import Objective, ObjectiveOutput
from keju.training.whole_batch import WholeBatch
from keju.trees.packed_batch import PackedBatch


class LanguageModelObjective(Objective):
    item_name = "token"
    metric_names = ()

    def num_items(self, batch: PackedBatch) -> int:
        return len(batch.target)

    def __call__(self, model: nn.Module, batch: PackedBatch, whole: WholeBatch | None = None) -> ObjectiveOutput:
        return ObjectiveOutput(tree_cross_entropy(model, batch), {})

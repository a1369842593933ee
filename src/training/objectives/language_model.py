"""Pretraining and SFT: the loss of every predicted token."""

from __future__ import annotations

from torch import nn

from keju.models.backbone import tree_cross_entropy, tree_logprobs
from keju.training.objectives.objective import ObjectiveOutput
from keju.trees.packed_batch import PackedBatch


class LanguageModelObjective:
    """The sum of -log p over tokens, each times its weight where records give weights (token_values["weight"])."""

    item_name = "token"

    def num_items(self, batch: PackedBatch) -> int:
        return len(batch.target)

    def __call__(self, model: nn.Module, batch: PackedBatch) -> ObjectiveOutput:
        weight = batch.token_values.get("weight")
        if weight is None:
            return ObjectiveOutput(tree_cross_entropy(model, batch), {})
        logprobs = tree_logprobs(model, batch).logprobs
        # Records without weights share a batch with those that have some.
        return ObjectiveOutput(-(weight.nan_to_num(nan=1.0) * logprobs).sum(), {})

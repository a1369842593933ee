"""The module that is trained: a model together with its objective.

The loss belongs inside the forward of the module that DeepSpeed or DDP wraps: there, and only there, are the weights
whole when the LM head is applied to listed positions.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from keju.models.backbone import backbone_of, tree_layout, tree_logprobs, unwrapped
from keju.training.objectives.objective import Objective, ObjectiveOutput
from keju.trees.packed_batch import PackedBatch
from keju.trees.segment import Segment

PREFIX = "model."


class StageModel(nn.Module):
    """model: a PreTrainedModel or a PEFT model around one; forward(batch) -> ObjectiveOutput."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    @property
    def config(self):
        return self.model.config

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def forward(self, batch: PackedBatch) -> ObjectiveOutput:
        return self.objective(self.model, batch.to(self.device))

    # What transformers.Trainer asks of a model: the first of its later versions, the second of those before
    def activation_checkpointing_enable(self, **settings) -> None:
        self.model.activation_checkpointing_enable(**settings)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict | None = None) -> None:
        self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs)

    def inner_state_dict(self, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The state of this wrapper as that of the model inside."""
        return {name.removeprefix(PREFIX): tensor for name, tensor in state_dict.items()}


@torch.no_grad()
def verify_head(model: PreTrainedModel, token_ids: list[int], *, tolerance: float = 1e-3) -> None:
    """Raises ValueError unless log-probabilities over trees equal those of the model's own forward on a short row.

    Some architectures transform their logits in ways of their own; training on other logits than the model generates
    with would be a silent error, and this costs one forward pass over a few tokens.
    """
    was_training = model.training
    model.eval()
    batch = PackedBatch.from_trees([Segment(token_ids[:16], trained=True)]).to(next(model.parameters()).device)
    ours = tree_logprobs(model, batch).logprobs
    position_ids, _ = tree_layout(backbone_of(model), batch)
    row = {"input_ids": batch.input_ids, "attention_mask": torch.ones_like(batch.input_ids)}
    logits = model(**row, position_ids=position_ids, use_cache=False).logits[0, :-1]
    theirs = logits.float().log_softmax(-1).gather(-1, batch.target[:, None]).squeeze(-1)
    model.train(was_training)
    allowed = tolerance * (1 + theirs.abs().max().item()) * (1 if logits.dtype == torch.float32 else 100)
    difference = (ours - theirs).abs().max().item()
    if not difference <= allowed:
        raise ValueError(
            f"{type(unwrapped(model)).__name__} does more than apply a linear head to its last hidden states "
            f"(log-probabilities differ by {difference:.2g}); this architecture is not supported yet"
        )

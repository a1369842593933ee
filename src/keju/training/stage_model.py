"""The module that DeepSpeed or DDP wraps: a model, and what is computed from it in one pass over token trees.

Losses and log-probabilities belong inside the forward of that module: there, and only there, are the weights whole
when the LM head is applied to listed positions.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from keju.training.dropout import Dropout, train_without_dropout
from keju.training.objectives.objective import Objective, ObjectiveOutput
from keju.training.whole_batch import WholeBatch
from keju.trees.packed_batch import PackedBatch

PREFIX = "model."
Read = Callable[[nn.Module, PackedBatch], Any]


class StageModel(nn.Module):
    """model: a PreTrainedModel or a PEFT model around one.

    forward(batch, whole=...) -> ObjectiveOutput of `objective`; forward(batch, read) -> read(model, batch), whatever
    that is.
    dropout: what of it is on in training mode. autocast: what passes compute in, over the weights as they are; None:
    whatever rules where they are called.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective | None = None,
        *,
        dropout: Dropout = "all",
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.dropout = dropout
        self.autocast = autocast
        self.register_load_state_dict_pre_hook(_leave_out_scales)

    @property
    def config(self):
        return self.model.config

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def train(self, mode: bool = True) -> StageModel:
        super().train(mode)
        if mode and self.dropout != "all":
            train_without_dropout(self.model, keep_adapters=self.dropout == "adapters")
        return self

    def forward(
        self, batch: PackedBatch, read: Read | None = None, whole: WholeBatch | None = None
    ) -> ObjectiveOutput | Any:
        batch = batch.to(self.device)
        with torch.autocast(self.device.type, self.autocast) if self.autocast is not None else nullcontext():
            return self.objective(self.model, batch, whole) if read is None else read(self.model, batch)

    # What transformers.Trainer asks of a model: the first of its later versions, the second of those before
    def activation_checkpointing_enable(self, **settings) -> None:
        self.model.activation_checkpointing_enable(**settings)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict | None = None, **settings) -> None:
        self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs, **settings)

    def inner_state_dict(self, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The state of this wrapper as that of the model inside."""
        return {name.removeprefix(PREFIX): tensor for name, tensor in state_dict.items()}


def passes_of(model: nn.Module) -> nn.Module:
    """What takes (batch, read): a StageModel around `model`, or `model` itself where it is one or an engine of one."""
    if isinstance(model, StageModel) or isinstance(getattr(model, "module", None), StageModel):
        return model
    return StageModel(model)


def model_inside(passes: nn.Module) -> nn.Module:
    """The model in a StageModel, or in an engine of one."""
    return getattr(passes, "module", passes).model


def autocast_of(passes: nn.Module) -> torch.dtype | None:
    """What a StageModel, or an engine of one, computes in beside the precision of its weights."""
    return getattr(passes, "module", passes).autocast


def _leave_out_scales(module: nn.Module, state: dict[str, torch.Tensor], prefix: str, *_) -> None:
    """4-bit layers of bitsandbytes write the scales of their weights into a state, and cannot read them from one. A
    base that has been loaded anew has them already; DeepSpeed insists that a state fits."""
    for name, parameter in module.named_parameters():
        if hasattr(parameter, "quant_state"):
            for key in [key for key in state if key.startswith(f"{prefix}{name}.")]:
                del state[key]


def verify_head(model: nn.Module, token_ids: object = None) -> None:
    """The former name of keju.training.tree_guard.verify_trees, for scripts outside of the repository.

    token_ids: no longer looked at; the check draws its own.
    """
    from keju.training.tree_guard import verify_trees

    verify_trees(model)

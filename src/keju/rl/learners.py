"""A model that PPO trains, with its optimizer and schedule: in one process, or as a DeepSpeed engine in several."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, get_scheduler

from keju.training.adapters import apply_loraplus
from keju.training.engines import training_engine, zero_stage
from keju.training.optimization import make_optimizer
from keju.training.processes import num_processes
from keju.training.stage_model import Read, StageModel
from keju.training.weight_decay import decay_groups
from keju.trees.packed_batch import PackedBatch


@dataclass(frozen=True)
class LearnerSettings:
    """`num_updates` optimizer steps, of which the first `warmup_steps` warm up. max_grad_norm: 0 clips nothing.
    deepspeed: a configuration."""

    weight_decay: float
    loraplus_lr_ratio: float
    max_grad_norm: float
    lr_scheduler_type: str
    warmup_steps: int
    num_updates: int
    optim: str = "adamw_torch"
    optim_args: str | None = None
    activation_checkpointing: bool = False
    deepspeed: dict[str, Any] | None = None


class Learner:
    """Passes over packs, gradients summed over packs and processes, and optimizer steps of one model."""

    def __init__(self, model: PreTrainedModel, learning_rate: float, settings: LearnerSettings) -> None:
        self.model = model
        self.max_grad_norm = settings.max_grad_norm
        groups = decay_groups(model, weight_decay=settings.weight_decay)
        self.optimizer = make_optimizer(settings.optim, settings.optim_args, model, groups, learning_rate=learning_rate)
        apply_loraplus(self.optimizer, model, settings.loraplus_lr_ratio)
        self.scheduler = get_scheduler(
            settings.lr_scheduler_type,
            self.optimizer,
            num_warmup_steps=settings.warmup_steps,
            num_training_steps=settings.num_updates,
        )
        if settings.activation_checkpointing:
            model.activation_checkpointing_enable()
        self.stage_model = StageModel(model, dropout="none").eval()
        self.passes: nn.Module = self.stage_model
        self.engine = None
        if settings.deepspeed is not None:
            self.engine = training_engine(self.passes, self.optimizer, settings.deepspeed, settings.max_grad_norm)
            self.engine.eval()
            self.passes = self.engine
        self.has_gradients = False

    def __call__(self, batch: PackedBatch, read: Read) -> Any:
        return self.passes(batch, read)

    @contextmanager
    def recomputing(self) -> Iterator[None]:
        """With activation checkpointing, passes in the block keep their layers' inputs alone, and backward passes
        compute the rest again."""
        self.stage_model.train()
        try:
            yield
        finally:
            self.stage_model.eval()

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Adds the gradients of `loss`. is_last: no more come before the optimizer step."""
        self.has_gradients = True
        if self.engine is None:
            loss.backward()
            return
        self.engine.set_gradient_accumulation_boundary(is_last)
        self.engine.backward(loss * num_processes())  # it takes the mean over processes

    def step(self) -> float:
        """One optimizer step; the norm of the gradients before they are clipped. A norm that is not finite changes
        nothing (in one process)."""
        if not self.has_gradients:
            return 0.0
        self.has_gradients = False
        if self.engine is not None and zero_stage(self.engine.config):
            self.engine.step()
            return float(self.engine.get_global_grad_norm())
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm or math.inf))
        if self.engine is not None:  # without ZeRO an engine does not tell its norm
            self.engine.step()
            return norm
        if math.isfinite(norm):
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return norm

    @property
    def learning_rate(self) -> float:
        return self.scheduler.get_last_lr()[0]

"""Optimizers and schedules by name, as transformers knows them, looked at before a model loads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from keju.errors import UserError

# First words of names -> why these optimizers do not fit.
REFUSED = {
    "galore": "it projects gradients layer by layer, for which --use_peft is the way here",
    "apollo": "it projects gradients layer by layer, for which --use_peft is the way here",
    "lomo": "it updates weights inside the backward pass, before a step's gradients are whole",
    "adalomo": "it updates weights inside the backward pass, before a step's gradients are whole",
    "schedule_free": "it evaluates other weights than it trains; take --lr_scheduler_type constant_with_warmup",
}
# They ask for a measure of progress, which only evaluations while training give.
MEASURED = ("reduce_lr_on_plateau", "greedy")


def optimizer_class(args: TrainingArguments) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """What --optim names, and the settings that it is made with (learning rate, betas, those of --optim_args).

    Raises UserError naming the flag for one that does not fit or is not installed.
    """
    name = OptimizerNames(args.optim).value
    for first, reason in REFUSED.items():
        if name.startswith(first):
            raise UserError(f"--optim {name}: {reason}")
    for setting in filter(None, (args.optim_args or "").split(",")):
        if setting.count("=") != 1:
            raise UserError(f"--optim_args {args.optim_args}: expected name=value, got {setting.strip()!r}")
    try:
        return Trainer.get_optimizer_cls_and_kwargs(args, nn.Linear(1, 1))
    except (ImportError, ValueError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"--optim {name}: {reason.strip()}") from error


def make_optimizer(
    name: str, settings: str | None, model: nn.Module, groups: list[dict[str, Any]], *, learning_rate: float
) -> torch.optim.Optimizer:
    """The optimizer that --optim and --optim_args name, for PPO: betas 0.9 and 0.95, where it has some.

    As in transformers.Trainer, the state of embeddings has 32 bits where that of other weights has 8.
    """
    kind, given = optimizer_class(described(name, settings, learning_rate))
    if given.get("optim_bits") == 8:
        from bitsandbytes.optim import GlobalOptimManager

        for module in model.modules():
            if isinstance(module, nn.Embedding):
                GlobalOptimManager.get_instance().register_module_override(module, "weight", {"optim_bits": 32})
    return kind(groups, **given)


def described(name: str, settings: str | None = None, learning_rate: float = 1e-5) -> Any:
    """An optimizer as `optimizer_class` is asked for it."""
    return SimpleNamespace(
        optim=OptimizerNames(name),
        optim_args=settings,
        learning_rate=learning_rate,
        adam_beta1=0.9,
        adam_beta2=0.95,
        adam_epsilon=1e-8,
        optim_target_modules=None,
    )


def check_schedule(name: str, settings: dict[str, Any] | None = None, *, is_measured: bool = False) -> None:
    """Raises UserError naming the flag for a schedule that there is not, or that does not take these settings.

    is_measured: progress is measured while training (--eval_strategy), which some schedules go by.
    """
    names = [item.value for item in SchedulerType]
    name = getattr(name, "value", name)
    if name not in names:
        raise UserError(f"--lr_scheduler_type {name}: choose from {', '.join(names)}")
    if name in MEASURED and not is_measured:
        raise UserError(f"--lr_scheduler_type {name}: goes by evaluations while training; it needs --eval_strategy")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    try:
        get_scheduler(
            name, optimizer, num_warmup_steps=1, num_training_steps=10, scheduler_specific_kwargs=settings or {}
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"--lr_scheduler_kwargs: {name}: {str(error).splitlines()[0]}") from error

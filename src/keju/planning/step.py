"""A step of a stage to be rehearsed, and what both kinds of rehearsal, of an objective and of PPO, build on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from keju.errors import UserError
from keju.models import attention
from keju.models.accelerate import accelerate
from keju.models.configurations import load_config
from keju.models.loading import DTYPES
from keju.planning.allocations import OPTIMIZER, Allocations, Moment, unmoved
from keju.planning.workload import Workload
from keju.training.adapters import add_lora


@dataclass(frozen=True)
class Step:
    """One step of a stage. dtype: of the weights; autocast: compute in bfloat16 over them.

    on_gpu: through the Triton kernels; otherwise as on a CPU. num_processes: those that share the prompts of a rollout
    (rlhf). Sources of the lengths: see Workload.
    """

    stage: str
    config: PretrainedConfig
    workload: Workload = field(default_factory=Workload)
    dtype: str = "float32"
    autocast: bool = False
    use_peft: bool = False
    lora_r: int = 8
    lora_target_modules: Sequence[str] | None = None
    activation_checkpointing: bool = False
    share_base: bool = False
    on_gpu: bool = True
    num_processes: int = 1


class Counts(NamedTuple):
    """Parameters of a model: all, those with gradients, of the largest repeated layer, of the largest tensor."""

    all: int
    trained: int
    largest_layer: int
    largest_tensor: int


@dataclass(frozen=True)
class Rehearsal:
    """moments: of a step whose optimizer state is there already. Bytes and counts are those of one process alone.

    engines: the models that are trained; weights that several share are counted with the first. frozen: bytes of models
    beside them. step_temporaries: float32 numbers a parameter that the optimizer takes while it steps.
    """

    moments: list[Moment]
    engines: tuple[Counts, ...]
    frozen: dict[str, int]
    step_temporaries: int = 0

    @property
    def num_parameters(self) -> int:
        return sum(engine.all for engine in self.engines)

    @property
    def num_trained(self) -> int:
        return sum(engine.trained for engine in self.engines)


def model_config(name: str, overrides: dict[str, object] | None = None, base: str | None = None) -> PretrainedConfig:
    """The configuration of a folder, a hub name or a named size; base: of the adapters in a folder. Raises UserError
    naming the flag."""
    config = load_config(name, base)
    for key, value in (overrides or {}).items():
        if not hasattr(config, key):
            raise UserError(f"{type(config).__name__} has no field {key!r}", option="config_overrides")
        setattr(config, key, value)
    return config


def add_adapters(step: Step, model: PreTrainedModel, seen: Allocations, *, scalar: bool) -> PreTrainedModel:
    """LoRA adapters over the model, as the stages add them."""
    with seen.fake, unmoved():
        model = add_lora(
            model,
            task_type="SEQ_CLS" if scalar else "CAUSAL_LM",
            r=step.lora_r,
            alpha=2 * step.lora_r,
            target_modules=step.lora_target_modules,
        )
    return accelerate(model) if step.on_gpu else model


def fake_model(step: Step, seen: Allocations, *, scalar: bool) -> PreTrainedModel:
    """A causal LM, or a model of one number a token, whose weights have no memory."""
    kind = AutoModelForSequenceClassification if scalar else AutoModelForCausalLM
    config = copy.deepcopy(step.config)
    if scalar:
        config.num_labels = 1
    with seen.fake:
        model = kind.from_config(config, dtype=DTYPES[step.dtype], attn_implementation=attention.NAME)
    return accelerate(model) if step.on_gpu else model


def precision(step: Step) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=step.autocast)


def mark_optimizer(seen: Allocations, *optimizers: torch.optim.Optimizer) -> None:
    states = [state for optimizer in optimizers for state in optimizer.state.values()]
    seen.mark([value for state in states for value in state.values() if isinstance(value, torch.Tensor)], OPTIMIZER)


def counts(model: nn.Module, *, beside: nn.Module | None = None) -> Counts:
    """beside: a model whose parameters are counted already."""
    known = {id(parameter) for parameter in beside.parameters()} if beside is not None else set()
    parameters = [parameter for parameter in model.parameters() if id(parameter) not in known]
    lists = [owner for owner in model.modules() if isinstance(owner, nn.ModuleList)]
    layers = [sum(p.numel() for p in layer.parameters()) for owner in lists for layer in owner]
    return Counts(
        sum(p.numel() for p in parameters),
        sum(p.numel() for p in parameters if p.requires_grad),
        max(layers, default=0),
        max(p.numel() for p in model.parameters()),
    )

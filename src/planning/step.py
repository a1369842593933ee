"""A step of a stage to be rehearsed, and what both kinds of rehearsal, of an objective and of PPO, build on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from keju.models import attention
from keju.models.accelerate import accelerate
from keju.models.loading import DTYPES, load_config, named_sizes, size_config
from keju.planning.allocations import OPTIMIZER, Allocations, Moment, unmoved
from keju.planning.workload import Workload
from keju.training.adapters import add_lora


@dataclass(frozen=True)
class Step:
    """One step of a stage. dtype: of the weights; autocast: compute in bfloat16 over them.

    on_gpu: through the Triton kernels; otherwise as on a CPU. Sources of the lengths: see Workload.
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


@dataclass(frozen=True)
class Rehearsal:
    """moments: of a step whose optimizer state is there already. Bytes and counts are those of one process alone.

    num_trained: parameters with gradients; num_parameters: all of the trained model; largest_layer: parameters of the
    largest module that is repeated.
    """

    moments: list[Moment]
    num_parameters: int
    num_trained: int
    largest_layer: int
    frozen: dict[str, int]


def model_config(name: str, overrides: dict[str, object] | None = None) -> PretrainedConfig:
    """The configuration of a folder, a hub name or a named size. Raises ValueError naming the flag."""
    config = size_config(name) if name in named_sizes() else load_config(name)
    for key, value in (overrides or {}).items():
        if not hasattr(config, key):
            raise ValueError(f"--config_overrides: {type(config).__name__} has no field {key!r}")
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


def counts(*modules: nn.Module) -> tuple[int, int, int]:
    """Parameters, those that are trained, and those of the largest repeated module, of all the modules together."""
    parameters = {id(p): p for module in modules for p in module.parameters()}.values()
    lists = [owner for module in modules for owner in module.modules() if isinstance(owner, nn.ModuleList)]
    largest = max((sum(p.numel() for p in layer.parameters()) for owner in lists for layer in owner), default=0)
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad), largest

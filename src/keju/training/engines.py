"""DeepSpeed engines beside those of transformers.Trainer: of models that PPO trains, and of models that are only read,
which ZeRO-3 cuts into pieces as well.

deepspeed is imported where it is needed: that takes seconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import TrainingArguments

from keju.errors import UserError
from keju.training.stage_model import StageModel

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


def deepspeed_config(training: TrainingArguments) -> dict[str, Any] | None:
    """What --deepspeed says, as transformers has filled it in."""
    return training.hf_deepspeed_config.config if training.deepspeed else None


def autocast_dtype(training: TrainingArguments) -> torch.dtype | None:
    """What passes compute in over weights of another precision; None under DeepSpeed, which casts the weights."""
    return None if training.deepspeed else _given_dtype(training)


def engine_dtype(training: TrainingArguments) -> torch.dtype | None:
    """The precision to which DeepSpeed casts the weights that passes read; None: as they are."""
    config = deepspeed_config(training)
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        if config.get(name, {}).get("enabled") is True:
            return dtype
    return _given_dtype(training)


def _given_dtype(training: TrainingArguments) -> torch.dtype | None:
    return torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else None


def zero_stage(config: dict[str, Any]) -> int:
    return int(config.get("zero_optimization", {}).get("stage", 0))


def read_deepspeed_config(path: str, *, bf16: bool) -> dict[str, Any]:
    """A configuration file for engines of ours, with nothing left to be filled in.

    Raises UserError naming the flag for a file that is none, and for one that brings an optimizer or a schedule.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"--deepspeed: {file} does not exist")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"--deepspeed: {file}:{error.lineno}: not JSON: {error.msg}") from error
    for name in ("optimizer", "scheduler"):
        if name in config:
            raise UserError(f"--deepspeed: {file} has its own {name}, but PPO brings one for actor and critic each")
    filled_in = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    config = {name: value for name, value in config.items() if name not in filled_in}
    config["zero_optimization"] = _without_auto(config.get("zero_optimization", {}))
    for name, enabled in (("bf16", bf16), ("fp16", False)):
        section = config.get(name, {})
        config[name] = {
            **section,
            "enabled": enabled if section.get("enabled", "auto") == "auto" else section["enabled"],
        }
    if config["fp16"]["enabled"]:
        raise UserError(f"--deepspeed: {file}: PPO runs in float32 or bf16, not in fp16")
    return config


def training_engine(
    module: nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any], max_grad_norm: float
) -> DeepSpeedEngine:
    """An engine whose caller says when an optimizer step is due (set_gradient_accumulation_boundary)."""
    import deepspeed

    config = {
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        **config,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_grad_norm,
    }
    return deepspeed.initialize(model=module, optimizer=optimizer, config=config)[0]


def _without_auto(section: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in section.items() if value != "auto"}


def cut_up(model: nn.Module, config: dict[str, Any]) -> None:
    """Leaves this process its piece of each weight, as ZeRO-3 does when it takes a model over."""
    from deepspeed import zero

    zero.Init(module=model, config_dict_or_path=_reduced(config))


def frozen_engine(model: nn.Module, config: dict[str, Any]) -> DeepSpeedEngine:
    """An engine under which the weights of a model are in pieces, for passes without gradients."""
    import deepspeed

    return deepspeed.initialize(model=StageModel(model).eval(), config=_reduced(config))[0]


def _reduced(config: dict[str, Any]) -> dict[str, Any]:
    """What concerns weights that are not trained."""
    zero = _without_auto(config["zero_optimization"])
    zero.pop("offload_optimizer", None)
    precision = {name: config[name] for name in ("bf16", "fp16") if name in config}
    return {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero, **precision}


def frozen_passes(model: nn.Module, config: dict[str, Any]) -> nn.Module:
    """What reads a model that is not trained, beside engines of this configuration (see StageModel)."""
    if zero_stage(config) == 3:
        return frozen_engine(model, config)
    if config["bf16"]["enabled"]:
        # As precise as the engines: the reference says about the policy's start what the policy itself says. Buffers
        # (frequencies of rotary positions) stay as they are, there as here.
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(torch.bfloat16)
    return StageModel(model).eval()


@contextmanager
def readable(model: nn.Module, training: TrainingArguments) -> Iterator[nn.Module]:
    """`model` as it can be read (see StageModel) before it is trained, in exactly the precision in which it will be:
    under autocast, or with weights cast as DeepSpeed casts them; under ZeRO-3 by an engine of its own."""
    config = deepspeed_config(training)
    if config is None:
        yield StageModel(model, autocast=autocast_dtype(training))
    elif zero_stage(config) < 3:
        with cast(model, engine_dtype(training)):
            yield StageModel(model)
    else:
        engine = frozen_engine(model, config)
        try:
            yield engine
        finally:
            engine.destroy()


@contextmanager
def cast(model: nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    """All weights in `dtype` in the block; buffers stay as they are, as in engines."""
    before = [
        (parameter, parameter.data)
        for parameter in model.parameters()
        if dtype is not None and parameter.is_floating_point() and parameter.dtype != dtype
    ]
    try:
        for parameter, weights in before:
            parameter.data = weights.to(dtype)
        yield
    finally:
        for parameter, weights in before:
            parameter.data = weights

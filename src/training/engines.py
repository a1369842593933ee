"""DeepSpeed engines beside those of transformers.Trainer: of models that are only read, cut into pieces by ZeRO-3."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import TrainingArguments

from keju.training.stage_model import StageModel


def deepspeed_config(training: TrainingArguments) -> dict[str, Any] | None:
    """What --deepspeed says, as transformers has filled it in."""
    return training.hf_deepspeed_config.config if training.deepspeed else None


def zero_stage(config: dict[str, Any]) -> int:
    return int(config.get("zero_optimization", {}).get("stage", 0))


def frozen_engine(model: nn.Module, config: dict[str, Any]) -> nn.Module:
    """An engine under which the weights of a model are in pieces, for passes without gradients."""
    import deepspeed

    zero = {
        name: value
        for name, value in config["zero_optimization"].items()
        if value != "auto" and not name.startswith(("offload_optimizer", "overlap_comm"))
    }
    reduced = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero}
    reduced |= {name: config[name] for name in ("bf16", "fp16") if name in config}
    return deepspeed.initialize(model=StageModel(model).eval(), config=reduced)[0]


@contextmanager
def readable(model: nn.Module, config: dict[str, Any] | None) -> Iterator[nn.Module]:
    """`model` as it can be read (see StageModel) before it is trained: under ZeRO-3 by an engine of its own.

    config: that of DeepSpeed, where the run has one.
    """
    if config is None or zero_stage(config) < 3:
        yield StageModel(model)
        return
    engine = frozen_engine(model, config)
    try:
        yield engine
    finally:
        engine.destroy()

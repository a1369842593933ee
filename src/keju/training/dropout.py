"""Training without dropout, which preference, reward and RL stages want: a policy that is compared with a reference, or
with itself as it sampled, must compute as these do."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

# Which dropout is on in training: all that the configuration says, that of adapters alone, or none.
Dropout = Literal["all", "adapters", "none"]
DISABLE_DROPOUT_HELP = "Train without the dropout that the model brings along (--lora_dropout of this stage stays)."
PEFT_LORA = "peft.tuners.lora.layer"


def dropout_of(disable_dropout: bool, lora_dropout: float) -> Dropout:
    """What --disable_dropout leaves on: only what --lora_dropout asks for in this very stage, which adapters that the
    model has brought along do not."""
    if not disable_dropout:
        return "all"
    return "adapters" if lora_dropout else "none"


def train_without_dropout(model: nn.Module, *, keep_adapters: bool = False) -> None:
    """model.train() without anything that is drawn at random.

    All modules are in eval mode, since dropout comes in many forms: as modules, as probabilities that attention reads
    from a configuration, as whole layers that are left out, as noise of routers. Layers whose activations are
    recomputed are in training mode, without which they would keep them, but compute in eval mode, too.

    keep_adapters: dropout in front of LoRA adapters stays on.
    """
    model.eval()
    peft = sys.modules.get(PEFT_LORA)  # not loaded: no layer is one of its own
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
            module.training = True
            if not isinstance(module._gradient_checkpointing_func, _InEvalMode):
                module._gradient_checkpointing_func = _InEvalMode(module, module._gradient_checkpointing_func)
        elif keep_adapters and peft is not None and isinstance(module, peft.LoraLayer):
            module.training = True
            module.lora_dropout.train()


class _InEvalMode:
    """A layer's function for recomputation, in which the layer itself is in eval mode.

    Some layers (of OPT, Falcon, Bloom) drop by functions that ask for their mode.
    """

    def __init__(self, layer: nn.Module, checkpoint: Callable[..., Any]) -> None:
        self.layer, self.checkpoint = layer, checkpoint

    def __call__(self, forward: Callable[..., Any], *args: Any) -> Any:
        return self.checkpoint(partial(self._compute, forward), *args)

    def _compute(self, forward: Callable[..., Any], *args: Any) -> Any:
        self.layer.training = False
        try:
            return forward(*args)
        finally:
            self.layer.training = True

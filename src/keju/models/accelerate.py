"""The kernels of keju.kernels in models that transformers brings: Llama, Qwen2, Qwen3 and GLM-4, and in PEFT's layers.

`keju.models.accelerated` has one module for each model_type; the classes in it carry the names of those they replace.
A module's class is exchanged in place: parameters, their names, hooks and devices stay as they are.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys

import torch
from torch import nn

from keju.errors import UserError
from keju.kernels.dispatch import possible_choice
from keju.kernels.lora import lora_linear
from keju.models import accelerated
from keju.models.layers import PEFT_LORA, as_lora


def with_kernels(model: nn.Module) -> nn.Module:
    """`accelerate` on CUDA unless KEJU_KERNELS=reference; elsewhere only where KEJU_KERNELS=triton asks for it.

    Raises UserError for another value of KEJU_KERNELS.
    """
    try:
        chosen = possible_choice()
    except ValueError as error:  # a kernel does not know whose mistake it is
        raise UserError(str(error)) from error
    if chosen == "triton" or (not chosen and torch.cuda.is_available()):
        accelerate(model)
    return model


def accelerate(model: nn.Module) -> nn.Module:
    """Exchanges the layers that we have faster ones for; the model itself comes back. Other models stay as they are.

    To be called again after adapters of PEFT have been added. Whatever runs, Triton or plain torch, is chosen anew in
    each call, by the device of the tensors.
    """
    config = model.config.get_text_config()
    if config.model_type in {module.name for module in pkgutil.iter_modules(accelerated.__path__)}:
        family = importlib.import_module(f"{accelerated.__name__}.{config.model_type}")
        for module in model.modules():
            faster = vars(family).get(type(module).__name__)
            if faster is not None and type(module) in faster.__bases__:
                module.__class__ = faster
    peft = sys.modules.get(PEFT_LORA)
    if peft is not None:
        for module in model.modules():
            if type(module) in _lora_classes(peft):
                module.__class__ = _lora_classes(peft)[type(module)]
    return model


def _lora_classes(peft) -> dict[type, type]:
    """Layers of PEFT -> the same with our forward where it does what theirs would; made once for each."""
    originals = [peft.Linear, *([peft.Linear4bit] if hasattr(peft, "Linear4bit") else [])]
    for original in originals:
        if original not in _LORA_CLASSES:
            _LORA_CLASSES[original] = type(original.__name__, (_FusedLora, original), {"__module__": __name__})
    return _LORA_CLASSES


_LORA_CLASSES: dict[type, type] = {}


class _FusedLora:
    def forward(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        layer = None if args or kwargs else as_lora(self, x)
        if layer is None:
            return super().forward(x, *args, **kwargs)
        return lora_linear(x, layer)[0]

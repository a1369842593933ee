"""The layers that our families share, over the kernels of keju.kernels."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import nn
from transformers.activations import ACT2FN

from keju.kernels.gelu import gelu
from keju.kernels.gelu_forms import Form
from keju.kernels.glu import glu
from keju.kernels.layer_norm import layer_norm
from keju.kernels.lora import LoraLinear, lora_linear
from keju.kernels.nf4 import NF4
from keju.kernels.rms_norm import rms_norm

# Activations under their names in a config, and what the kernels call them.
FORMS: dict[str, Form] = {
    "gelu": "exact",
    "gelu_new": "tanh",
    "gelu_fast": "tanh",
    "gelu_pytorch_tanh": "tanh",
    "quick_gelu": "quick",
    "silu": "silu",
    "swish": "silu",
}

PEFT_LORA = "peft.tuners.lora"


class RMSNorm(nn.RMSNorm):
    def forward(self, hidden: torch.Tensor, residual: torch.Tensor | None = None):
        """The norm of hidden [..., H]; with `residual` (norm of the sum, hidden + residual), in one pass."""
        return rms_norm(hidden, self.weight, self.eps, residual=residual)


class LayerNorm(nn.LayerNorm):
    def forward(self, hidden: torch.Tensor, residual: torch.Tensor | None = None):
        """The norm of hidden [..., H]; with `residual` (norm of the sum, hidden + residual), in one pass."""
        return layer_norm(hidden, self.weight, self.bias, self.eps, residual=residual)


def activation(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The activation that a config names."""
    form = FORMS.get(name)
    if form is None or form == "silu":
        return ACT2FN[name]
    return lambda hidden: gelu(hidden, form)


def gated(name: str) -> Callable[..., torch.Tensor]:
    """(gate, up) or (both in one tensor) -> activation(gate) * up, for the activation that a config names."""
    form = FORMS.get(name)
    if form is not None:
        return lambda gate, up=None: glu(gate, up, form)

    def plain(gate, up=None):
        gate, up = gate.chunk(2, dim=-1) if up is None else (gate, up)
        return ACT2FN[name](gate) * up

    return plain


def project(hidden: torch.Tensor, *layers: nn.Module) -> tuple[torch.Tensor, ...]:
    """Each layer's output for the same input; layers with plain LoRA adapters in one call, see lora_linear."""
    adapted = [as_lora(layer, hidden) for layer in layers]
    if any(layer is None for layer in adapted):
        return tuple(layer(hidden) for layer in layers)
    return lora_linear(hidden, *adapted)


def as_lora(layer: nn.Module, hidden: torch.Tensor) -> LoraLinear | None:
    """A layer of PEFT as the kernel wants it. None for what its own forward must do: other kinds of adapters, several
    at once, dropout that is on, hooks, and weights that DeepSpeed has taken apart."""
    peft = sys.modules.get(PEFT_LORA)  # not loaded: no layer is one of its own
    if peft is None or not isinstance(layer, (peft.Linear, *_quantised_types(peft))):
        return None
    names = layer.active_adapters
    if layer.disable_adapters or layer.merged or len(names) != 1 or names[0] not in layer.lora_A:
        return None
    (name,) = names
    base, a, b, dropout = layer.base_layer, layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name]
    if name in layer.lora_variant or a.bias is not None or b.bias is not None or layer.fan_in_fan_out:
        return None
    if type(dropout) is not nn.Identity and dropout.training:
        return None
    parts = (layer, base, a, b)
    if any(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks for part in parts):
        return None
    trained = base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad)
    if trained or any(hasattr(part.weight, "ds_id") for part in parts[1:]):
        return None
    weight = base.weight
    state = getattr(weight, "quant_state", None)
    if state is not None:
        if state.quant_type != "nf4":
            return None
        weight = NF4.from_bitsandbytes(weight.data, state)
    elif type(base) is not nn.Linear or (
        weight.dtype != hidden.dtype and not torch.is_autocast_enabled(hidden.device.type)
    ):
        return None
    return LoraLinear(weight, a.weight, b.weight, layer.scaling[name], base.bias)


def _quantised_types(peft) -> tuple[type, ...]:
    """PEFT's layer over 4-bit weights, which it has where bitsandbytes is installed."""
    return (peft.Linear4bit,) if hasattr(peft, "Linear4bit") else ()

"""The gates of feed-forward layers and their derivatives, for the kernels of gelu and glu."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

from keju.kernels.dispatch import jit, tl

# exact: x Phi(x). tanh: the approximation of the GELU paper (arXiv 1606.08415), in ChatGLM and as "gelu_new",
# "gelu_fast" and "gelu_pytorch_tanh" in transformers. quick: x sigmoid(1.702 x) of the same paper, MindSpore's
# fast_gelu that PanGu was trained with. silu: x sigmoid(x).
Form = Literal["exact", "tanh", "quick", "silu"]
FORMS = ("exact", "tanh", "quick", "silu")


@jit
def gate(x, FORM: tl.constexpr):
    """(f(x), f'(x))"""
    if FORM == "exact":
        phi = 0.5 * (1 + tl.erf(x * 0.7071067811865476))
        return x * phi, phi + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
    elif FORM == "tanh":
        # (1 + tanh(u)) / 2 = sigmoid(2 u)
        inner = 1.5957691216057308 * x * (1 + 0.044715 * x * x)
        s = 1 / (1 + tl.exp(-inner))
        return x * s, s + x * s * (1 - s) * 1.5957691216057308 * (1 + 0.134145 * x * x)
    else:
        slope: tl.constexpr = 1.702 if FORM == "quick" else 1.0
        s = 1 / (1 + tl.exp(-slope * x))
        return x * s, s * (1 + slope * x * (1 - s))


def check_form(form: str, forms: tuple[str, ...] = FORMS) -> None:
    if form not in forms:
        raise ValueError(f"form {form!r} is none of {', '.join(forms)}")


def torch_gate(x: torch.Tensor, form: Form) -> torch.Tensor:
    if form == "silu":
        return F.silu(x)
    if form == "quick":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if form == "tanh" else "none")

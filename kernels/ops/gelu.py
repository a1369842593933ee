"""GELU (arXiv 1606.08415): exact, tanh, and the quick form that takes torch three passes and a saved activation.

The gradient is computed from the input alone.
"""

from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable

from keju.kernels.dispatch import check_floating, compute_dtype, jit, launch, tl, triton, use_triton
from keju.kernels.gelu_forms import Form, check_form, gate, torch_gate

BLOCK = 1024
FORMS = ("exact", "tanh", "quick")


@jit
def _gelu(x, dy, out, size, BACKWARD: tl.constexpr, FORM: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < size
    value, slope = gate(tl.load(x + index, mask=inside, other=0.0).to(DTYPE), FORM)
    if BACKWARD:
        value = slope * tl.load(dy + index, mask=inside, other=0.0).to(DTYPE)
    tl.store(out + index, value, mask=inside)


def _run(x: torch.Tensor, dy: torch.Tensor | None, form: Form) -> torch.Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    launch(
        _gelu,
        (triton.cdiv(x.numel(), BLOCK),),
        *(x, None if dy is None else dy.contiguous(), out, x.numel()),
        BACKWARD=dy is not None,
        FORM=form,
        DTYPE=compute_dtype(x),
        BLOCK=BLOCK,
        num_warps=4,
    )
    return out


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, form: Form):
        ctx.save_for_backward(x)
        ctx.form = form
        return _run(x, None, form)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        return _run(x, dy, ctx.form), None


def gelu(x: torch.Tensor, form: Form = "exact") -> torch.Tensor:
    """f(x) for x of any shape; form: "exact", "tanh" or "quick", see keju.kernels.gelu_forms.

    Computed in float32, in the dtype of x. Raises ValueError for another form and for integers.
    """
    check_floating(x=x)
    check_form(form, FORMS)
    return _Gelu.apply(x, form) if use_triton(x) else reference(x, form)


def reference(x: torch.Tensor, form: Form = "exact") -> torch.Tensor:
    """The same in plain torch."""
    return torch_gate(x, form)

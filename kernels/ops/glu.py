"""Gated linear units (arXiv 2002.05202): silu(gate) * up is SwiGLU, gelu(gate) * up GeGLU.

Only gate and up are kept for the backward pass; the activated gate is computed again there.
"""

from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable

from keju.kernels.dispatch import (
    as_rows,
    check_floating,
    check_shape,
    compute_dtype,
    jit,
    launch,
    tl,
    triton,
    use_triton,
)
from keju.kernels.gelu_forms import Form, check_form, gate, torch_gate

BLOCK = 1024


@jit
def _forward(
    gates, ups, out, size, gate_stride, up_stride, FORM: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = col < size
    value, _ = gate(tl.load(gates + row * gate_stride + col, mask=inside, other=0.0).to(DTYPE), FORM)
    # As torch has it: the activated gate is rounded before it is multiplied.
    value = value.to(out.dtype.element_ty).to(DTYPE)
    up = tl.load(ups + row * up_stride + col, mask=inside, other=0.0).to(DTYPE)
    tl.store(out + row * size + col, value * up, mask=inside)


@jit
def _backward(
    dout,
    gates,
    ups,
    dgates,
    dups,
    size,
    gate_stride,
    up_stride,
    dgate_stride,
    dup_stride,
    FORM: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = col < size
    d = tl.load(dout + row * size + col, mask=inside, other=0.0).to(DTYPE)
    value, slope = gate(tl.load(gates + row * gate_stride + col, mask=inside, other=0.0).to(DTYPE), FORM)
    up = tl.load(ups + row * up_stride + col, mask=inside, other=0.0).to(DTYPE)
    tl.store(dgates + row * dgate_stride + col, d * up * slope, mask=inside)
    tl.store(dups + row * dup_stride + col, d * value, mask=inside)


class _GLU(torch.autograd.Function):
    """up None: both lie in `gate`, one half each, and so do their gradients."""

    @staticmethod
    def forward(ctx, gate, up, form: Form):
        gates, ups = _halves(as_rows(gate)) if up is None else (as_rows(gate), as_rows(up))
        rows, size = gates.shape
        out = gates.new_empty(rows, size)
        launch(
            _forward,
            (rows, triton.cdiv(size, BLOCK)),
            *(gates, ups, out, size, gates.stride(0), ups.stride(0)),
            FORM=form,
            DTYPE=compute_dtype(gates),
            BLOCK=BLOCK,
            num_warps=4,
        )
        ctx.save_for_backward(gate, up)
        ctx.form = form
        return out.view(*gate.shape[:-1], size)

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        gate, up = ctx.saved_tensors
        gates, ups = _halves(as_rows(gate)) if up is None else (as_rows(gate), as_rows(up))
        rows, size = gates.shape
        dgate = gate.new_empty(gate.shape)
        dup = None if up is None else up.new_empty(up.shape)
        dgates, dups = _halves(as_rows(dgate)) if up is None else (as_rows(dgate), as_rows(dup))
        launch(
            _backward,
            (rows, triton.cdiv(size, BLOCK)),
            *(dout.reshape(rows, size).contiguous(), gates, ups, dgates, dups, size),
            *(states.stride(0) for states in (gates, ups, dgates, dups)),
            FORM=ctx.form,
            DTYPE=compute_dtype(gates),
            BLOCK=BLOCK,
            num_warps=4,
        )
        return dgate, dup, None


def _halves(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = packed.chunk(2, dim=-1)
    return first, second


def glu(gate: torch.Tensor, up: torch.Tensor | None = None, form: Form = "silu") -> torch.Tensor:
    """f(gate) * up; gate and up [..., F], or both in `gate` [..., 2F], the gate first.

    form: "silu" (SwiGLU), or GeGLU's "exact", "tanh" or "quick", see keju.kernels.gelu_forms. Computed in float32, the
    result [..., F] has the dtype of the inputs. Raises ValueError for shapes and dtypes that do not match.
    """
    check_floating(gate=gate, up=up)
    check_form(form)
    if up is None and gate.shape[-1] % 2:
        raise ValueError(f"gate {list(gate.shape)} must hold two halves")
    check_shape("up", up, gate.shape)
    if up is not None and up.dtype != gate.dtype:
        raise ValueError(f"up is {up.dtype}, but gate {gate.dtype}")
    return _GLU.apply(gate, up, form) if use_triton(gate) else reference(gate, up, form)


def swiglu(gate: torch.Tensor, up: torch.Tensor | None = None) -> torch.Tensor:
    """glu with form="silu"."""
    return glu(gate, up, "silu")


def geglu(gate: torch.Tensor, up: torch.Tensor | None = None, form: Form = "exact") -> torch.Tensor:
    """glu with one of the forms of GELU."""
    return glu(gate, up, form)


def reference(gate: torch.Tensor, up: torch.Tensor | None = None, form: Form = "silu") -> torch.Tensor:
    """The same in plain torch."""
    if up is None:
        gate, up = _halves(gate)
    return torch_gate(gate, form) * up

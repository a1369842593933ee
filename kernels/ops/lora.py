"""Linear layers with LoRA adapters (arXiv 2106.09685): x W^T + scale (x A^T) B^T for layers that share their input.

The base is frozen: it gets no gradient, and of the layers nothing but x is kept for the backward pass. Over NF4 weights
(QLoRA) one kernel dequantises tiles of W as it multiplies, forward and backward, and adds the low-rank product to the
same sum: the matrix never exists. Over plain weights the products are torch's, whose last word on a GPU is cuBLAS.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from keju.kernels.dispatch import as_autocast, as_rows, check_floating, check_shape, jit, launch, tl, triton, use_triton
from keju.kernels.nf4 import NF4, dequantize_nf4, element
from keju.kernels.products import dot, precision


class LoraLinear(NamedTuple):
    """One layer: weight [out, in] and bias [out], frozen; a [rank, in] and b [out, rank], trained."""

    weight: torch.Tensor | NF4
    a: torch.Tensor
    b: torch.Tensor
    scale: float
    bias: torch.Tensor | None = None


@jit
def _product(
    x,
    left,
    right,
    bias,
    out,
    rows,
    columns,
    inner,
    rank,
    x_stride,
    right_rank,
    right_column,
    scale,
    w_column,
    w_inner,
    packed,
    absmax,
    levels,
    nested_absmax,
    nested_levels,
    offset,
    block_size,
    nested_size,
    NESTED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
):
    """out [rows, columns] = x [rows, inner] W + scale left [rows, rank] right [rank, columns] + bias [columns]; element
    (k, n) of W is the element k w_inner + n w_column of the quantised matrix."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    col = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)[None, :]
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, inner, INNER):
        k = start + tl.arange(0, INNER)
        states = tl.load(x + row * x_stride + k[None, :], mask=(row < rows) & (k[None, :] < inner), other=0.0)
        w = element(
            k[:, None].to(tl.int64) * w_inner + col * w_column, (k[:, None] < inner) & (col < columns),
            packed, absmax, levels, nested_absmax, nested_levels, offset, block_size, nested_size, NESTED,
        )  # fmt: skip
        total += dot(states, w.to(states.dtype), PRECISION, tl.float32)
    r = tl.arange(0, RANK)
    low = tl.load(left + row * rank + r[None, :], mask=(row < rows) & (r[None, :] < rank), other=0.0)
    high = tl.load(
        right + r[:, None] * right_rank + col * right_column, mask=(r[:, None] < rank) & (col < columns), other=0.0
    )
    total += scale * dot(low, high, PRECISION, tl.float32)
    if HAS_BIAS:
        total += tl.load(bias + col, mask=col < columns, other=0.0).to(tl.float32)
    tl.store(out + row * columns + col, total, mask=(row < rows) & (col < columns))


def _fused(x, weight: NF4, left, right, scale: float, bias, *, transposed: bool) -> torch.Tensor:
    """x W^T + scale left right + bias, or with `transposed` x W + scale left right. right [rank, columns]."""
    rows, rank = left.shape
    out_size, in_size = weight.shape
    columns, inner = (in_size, out_size) if transposed else (out_size, in_size)
    out = x.new_empty(rows, columns)
    tile = (16, 32, 64) if rows <= 16 else (64, 64, 32) if x.dtype == torch.float32 else (128, 128, 32)
    launch(
        _product,
        (triton.cdiv(rows, tile[0]), triton.cdiv(columns, tile[1])),
        *(x, left, right, bias, out, rows, columns, inner, rank, x.stride(0), *right.stride(), scale),
        *((1, in_size) if transposed else (in_size, 1)),
        *weight.pointers(),
        NESTED=weight.nested_absmax is not None,
        HAS_BIAS=bias is not None,
        PRECISION=precision(x),
        RANK=max(16, triton.next_power_of_2(rank)),
        **dict(zip(("ROWS", "COLUMNS", "INNER"), tile, strict=True)),
        num_warps=4 if rows <= 16 else 8,
        num_stages=2,
    )
    return out


def _is_fused(x: torch.Tensor, weight: torch.Tensor | NF4, a: torch.Tensor) -> bool:
    # Adapters in another dtype than the states keep it: their products are not those of the kernel.
    return isinstance(weight, NF4) and use_triton(x) and a.dtype == x.dtype and x.dtype != torch.float64


def _dense(weight: torch.Tensor | NF4, dtype: torch.dtype) -> torch.Tensor:
    return dequantize_nf4(weight, dtype) if isinstance(weight, NF4) else weight


class _LoraLinears(torch.autograd.Function):
    """Each layer's output; `layers`: (weight, bias, scale) of each, `adapters`: a and b of each, one after another."""

    @staticmethod
    def forward(ctx, x, layers, *adapters):
        states = as_rows(x)
        outputs = []
        for (weight, bias, scale), a, b in zip(layers, adapters[0::2], adapters[1::2], strict=True):
            low = states.to(a.dtype) @ a.t()
            if _is_fused(states, weight, a):
                out = _fused(states, weight, low, b.t(), scale, bias, transposed=False)
            else:
                out = F.linear(states, _dense(weight, states.dtype), bias)
                _add_product(out, low, b.t(), scale)
            outputs.append(out.view(*x.shape[:-1], out.shape[-1]))
        ctx.save_for_backward(states, *adapters)
        ctx.layers, ctx.shape = layers, x.shape
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, *d_outputs):
        states, *adapters = ctx.saved_tensors
        d_states, d_adapters = None, [None] * len(adapters)
        for number, d_output in enumerate(d_outputs):
            if d_output is None:
                continue
            weight, _, scale = ctx.layers[number]
            a, b = adapters[2 * number : 2 * number + 2]
            d_out = d_output.reshape(-1, d_output.shape[-1]).contiguous()
            d_low = d_out.to(b.dtype) @ b * scale
            wide = states.to(a.dtype)
            d_adapters[2 * number] = d_low.t() @ wide
            d_adapters[2 * number + 1] = d_out.to(b.dtype).t() @ (wide @ a.t()) * scale
            if not ctx.needs_input_grad[0]:
                continue
            if _is_fused(d_out, weight, a):
                share = _fused(d_out, weight, d_low, a, 1.0, None, transposed=True)
                d_states = share if d_states is None else d_states.add_(share)
                continue
            dense = _dense(weight, d_out.dtype)
            d_states = d_out @ dense if d_states is None else d_states.addmm_(d_out, dense)
            _add_product(d_states, d_low, a, 1.0)
        return None if d_states is None else d_states.view(ctx.shape), None, *d_adapters


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, scale: float) -> None:
    """total += scale left right"""
    if total.dtype == left.dtype:
        total.addmm_(left, right, alpha=scale)
    else:
        total += (left @ right * scale).to(total.dtype)


def lora_linear(x: torch.Tensor, *layers: LoraLinear) -> tuple[torch.Tensor, ...]:
    """x W^T + bias + scale (x A^T) B^T of each layer, [..., out] in the dtype of x [..., in].

    Query, key and value, or gate and up, in one call: the gradients of x are summed in place, and x A^T is computed
    again instead of being kept. W and bias are taken as frozen and get no gradient. Low-rank products have the dtype of
    the adapters, or under torch.autocast that of autocast. Raises ValueError for shapes and devices that do not match.
    """
    if not layers:
        raise ValueError("layers are missing")
    inputs, kept = [], []
    x = as_autocast(x)[0]
    for weight, a, b, scale, bias in layers:
        out_size, in_size = weight.shape
        is_dense = isinstance(weight, torch.Tensor)
        check_floating(x=x, a=a, b=b, bias=bias, weight=weight if is_dense else None)
        if weight.device != x.device:
            raise ValueError(f"weight is on {weight.device}, but x on {x.device}")
        if x.shape[-1] != in_size:
            raise ValueError(f"x must be [..., {in_size}], not {list(x.shape)}")
        if a.dim() != 2 or a.shape[1] != in_size:
            raise ValueError(f"a must be [rank, {in_size}], not {list(a.shape)}")
        check_shape("b", b, (out_size, a.shape[0]))
        check_shape("bias", bias, (out_size,))
        if is_dense:
            weight, bias = as_autocast(weight, bias)
            if weight.dtype != x.dtype:
                raise ValueError(f"weight is {weight.dtype}, but x {x.dtype}")
            weight = weight.detach()
        kept.append((weight, None if bias is None else bias.detach().to(x.dtype).contiguous(), scale))
        inputs += as_autocast(a, b)
    return _LoraLinears.apply(x, kept, *inputs)


def reference(x: torch.Tensor, *layers: LoraLinear) -> tuple[torch.Tensor, ...]:
    """The same in plain torch."""
    return tuple(
        F.linear(x, _dense(layer.weight, x.dtype), layer.bias) + layer.scale * (x @ layer.a.t() @ layer.b.t())
        for layer in layers
    )

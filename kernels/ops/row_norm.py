"""The kernels under rms_norm and layer_norm: one row of hidden size, statistics in float32, residual add fused.

Weight gradients are reduced in two stages: each program sums its share of the rows, the programs' sums are added after.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from keju.kernels.dispatch import as_rows, compute_dtype, jit, launch, num_programs, tl, triton

TILE = 4096  # elements of a program's tile: short rows share one
MAX_SIZE = 32768  # a row must fit into the registers of one program


@jit
def _forward(
    x,
    residual,
    summed,
    weight,
    bias,
    y,
    mean,
    rstd,
    rows,
    size,
    x_stride,
    residual_stride,
    eps,
    offset,
    CENTRED: tl.constexpr,
    ROUND_FIRST: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    SIZE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.arange(0, SIZE)[None, :]
    inside = (row < rows) & (col < size)
    h = tl.load(x + row * x_stride + col, mask=inside, other=0.0).to(DTYPE)
    if HAS_RESIDUAL:
        h += tl.load(residual + row * residual_stride + col, mask=inside, other=0.0).to(DTYPE)
        # What is normalised is the sum as the next layers see it, rounded.
        rounded = h.to(summed.dtype.element_ty)
        tl.store(summed + row * size + col, rounded, mask=inside)
        h = rounded.to(DTYPE)
    if CENTRED:
        centre = tl.sum(h, axis=1, keep_dims=True) / size
        tl.store(mean + row, centre, mask=row < rows)
        h = tl.where(inside, h - centre, 0.0)
    scale = tl.rsqrt(tl.sum(h * h, axis=1, keep_dims=True) / size + eps)
    tl.store(rstd + row, scale, mask=row < rows)
    out = h * scale
    if ROUND_FIRST:
        out = out.to(summed.dtype.element_ty).to(DTYPE)
    if HAS_WEIGHT:
        out *= tl.load(weight + col, mask=col < size, other=0.0).to(DTYPE) + offset
    if HAS_BIAS:
        out += tl.load(bias + col, mask=col < size, other=0.0).to(DTYPE)
    tl.store(y + row * size + col, out, mask=inside)


@jit
def _backward(
    dy,
    dsummed,
    summed,
    weight,
    mean,
    rstd,
    dx,
    dweight,
    dbias,
    rows,
    size,
    summed_stride,
    rows_each,
    offset,
    CENTRED: tl.constexpr,
    ROUND_FIRST: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    SIZE: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, SIZE)[None, :]
    dw = tl.zeros([1, SIZE], DTYPE)
    db = tl.zeros([1, SIZE], DTYPE)
    if HAS_WEIGHT:
        w = tl.load(weight + col, mask=col < size, other=0.0).to(DTYPE) + offset
    last = tl.minimum((program + 1) * rows_each, rows)
    for start in range(program * rows_each, last, ROWS):
        row = start + tl.arange(0, ROWS)[:, None]
        inside = (row < last) & (col < size)
        g = tl.load(dy + row * size + col, mask=inside, other=0.0).to(DTYPE)
        h = tl.load(summed + row * summed_stride + col, mask=inside, other=0.0).to(DTYPE)
        scale = tl.load(rstd + row, mask=row < last, other=0.0)
        if CENTRED:
            h = tl.where(inside, h - tl.load(mean + row, mask=row < last, other=0.0), 0.0)
        normed = h * scale
        if HAS_WEIGHT:
            if ROUND_FIRST:
                dw += tl.sum(g * normed.to(summed.dtype.element_ty).to(DTYPE), axis=0, keep_dims=True)
            else:
                dw += tl.sum(g * normed, axis=0, keep_dims=True)
            if HAS_BIAS:
                db += tl.sum(g, axis=0, keep_dims=True)
            g *= w
        d = g - normed * (tl.sum(g * normed, axis=1, keep_dims=True) / size)
        if CENTRED:
            d -= tl.sum(g, axis=1, keep_dims=True) / size
        d *= scale
        if HAS_RESIDUAL:
            d += tl.load(dsummed + row * size + col, mask=inside, other=0.0).to(DTYPE)
        tl.store(dx + row * size + col, d, mask=inside)
    if HAS_WEIGHT:
        tl.store(dweight + program * size + col, dw, mask=col < size)
    if HAS_BIAS:
        tl.store(dbias + program * size + col, db, mask=col < size)


def _tile(size: int) -> dict[str, int]:
    width = triton.next_power_of_2(size)
    return {"ROWS": max(1, TILE // width), "SIZE": width, "num_warps": min(16, max(4, width // 1024))}


class RowNorm(torch.autograd.Function):
    """(y, x + residual or None); `options`: eps, offset, centred, round_first (to the dtype of the hidden state, before
    the weight is applied), dtype (of y)."""

    @staticmethod
    def forward(ctx, x, residual, weight, bias, options: dict[str, Any]):
        rows = as_rows(x)
        count, size = rows.shape
        added = None if residual is None else as_rows(residual)
        weight, bias = (None if tensor is None else tensor.contiguous() for tensor in (weight, bias))
        summed = rows if added is None else rows.new_empty(rows.shape, dtype=torch.promote_types(x.dtype, added.dtype))
        y = rows.new_empty(rows.shape, dtype=options["dtype"])
        statistic = torch.float64 if summed.dtype == torch.float64 else torch.float32
        rstd = rows.new_empty(count, dtype=statistic)
        mean = rows.new_empty(count, dtype=statistic) if options["centred"] else None
        flags = {
            "CENTRED": options["centred"],
            "ROUND_FIRST": options["round_first"],
            "HAS_RESIDUAL": added is not None,
            "HAS_WEIGHT": weight is not None,
            "HAS_BIAS": bias is not None,
            "DTYPE": compute_dtype(summed),
            **_tile(size),
        }
        launch(
            _forward,
            (triton.cdiv(count, flags["ROWS"]),),
            *(rows, added, summed, weight, bias, y, mean, rstd, count, size),
            *(rows.stride(0), 0 if added is None else added.stride(0), options["eps"], options["offset"]),
            **flags,
        )
        ctx.save_for_backward(summed, weight, bias, mean, rstd)
        ctx.flags, ctx.offset, ctx.shape = flags, options["offset"], x.shape
        ctx.dtypes = x.dtype, None if residual is None else residual.dtype
        ctx.set_materialize_grads(False)
        return y.view(x.shape), None if residual is None else summed.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dsummed):
        summed, weight, bias, mean, rstd = ctx.saved_tensors
        count, size = summed.shape
        if dy is None:
            dy = summed.new_zeros(summed.shape)
        dx = torch.empty_like(summed, memory_format=torch.contiguous_format)
        programs = max(1, min(num_programs(summed), triton.cdiv(count, ctx.flags["ROWS"])))
        dweight = rstd.new_empty(programs, size) if weight is not None else None
        dbias = rstd.new_empty(programs, size) if bias is not None else None
        launch(
            _backward,
            (programs,),
            *(
                dy.reshape(count, size).contiguous(),
                None if dsummed is None else dsummed.reshape(count, size).contiguous(),
            ),
            *(summed, weight, mean, rstd, dx, dweight, dbias, count, size, summed.stride(0)),
            *(triton.cdiv(count, programs), ctx.offset),
            **{**ctx.flags, "HAS_RESIDUAL": dsummed is not None},
        )
        dx = dx.view(ctx.shape)
        to_x, to_residual = ctx.dtypes
        return (
            dx.to(to_x),
            None if to_residual is None else dx.to(to_residual),
            None if weight is None else dweight.sum(0).to(weight.dtype),
            None if bias is None else dbias.sum(0).to(bias.dtype),
            None,
        )

"""Attention under a column mask, in the manner of FlashAttention-2 (arXiv 2307.08691).

The Triton kernels hold one block of scores at a time and look at no block of keys that is wholly masked. Each result is
written by one program and summed in one order: there are no atomics, the backward pass is deterministic as it is. The
reference runs on any device: queries go in chunks, each against the keys that any of them may see.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from keju.kernels import attention_kernels
from keju.kernels.column_mask import ColumnMask
from keju.kernels.dispatch import (
    along_rows,
    as_autocast,
    check_floating,
    check_shape,
    compute_dtype,
    launch,
    shared_memory,
    triton,
    use_triton,
)
from keju.kernels.products import precision

MAX_HEAD_DIM = 256
LOG2E = 1.4426950408889634

Alibi = tuple[torch.Tensor, torch.Tensor]


class Tiles(NamedTuple):
    """Sizes of the blocks of queries and keys, warps and pipeline stages of one kernel."""

    q: int
    k: int
    warps: int
    stages: int


# By the largest head size: tiles of the forward pass, of the gradient of the queries, of that of keys and values. These
# are the largest that spill next to no registers: on Hopper and data-centre Blackwell, and where there are 99 KiB.
LARGE_TILES = {
    64: (Tiles(128, 64, 4, 3), Tiles(128, 64, 8, 2), Tiles(64, 128, 8, 2)),
    128: (Tiles(128, 64, 8, 3), Tiles(128, 64, 8, 2), Tiles(64, 128, 8, 2)),
    256: (Tiles(64, 64, 8, 2), Tiles(64, 64, 8, 2), Tiles(32, 64, 8, 2)),
}
SMALL_TILES = {
    64: (Tiles(128, 64, 8, 2), Tiles(128, 64, 8, 2), Tiles(32, 128, 8, 2)),
    128: (Tiles(128, 64, 8, 2), Tiles(64, 64, 8, 2), Tiles(32, 64, 8, 2)),
    256: (Tiles(64, 32, 8, 2), Tiles(64, 32, 8, 1), Tiles(32, 32, 8, 1)),
}
LARGE_MEMORY = 200 * 2**10
# Exact products of float32 run on the ordinary units and want registers.
FLOAT32_TILES = {128: (Tiles(32, 32, 8, 1),) * 3, 256: (Tiles(16, 16, 8, 1),) * 3}
# Small blocks, so that short rows have several, of two sizes.
INTERPRETED_TILES = Tiles(32, 16, 4, 1), Tiles(16, 32, 4, 1), Tiles(16, 32, 4, 1)


def _tiles(query: torch.Tensor) -> tuple[Tiles, Tiles, Tiles]:
    """For the forward pass, the gradient of the queries, and that of keys and values."""
    memory, head_dim = shared_memory(query), query.shape[-1]
    if not memory:
        return INTERPRETED_TILES
    half_precision = LARGE_TILES if memory >= LARGE_MEMORY else SMALL_TILES
    table = half_precision if query.element_size() == 2 else FLOAT32_TILES
    return next(tiles for limit, tiles in table.items() if head_dim <= limit)


class _Attention(torch.autograd.Function):
    """query [heads, T, D], key and value [kv_heads, T, D]; options: scale, dropout, seed."""

    @staticmethod
    def forward(ctx, query, key, value, mask: ColumnMask, alibi: Alibi | None, options: dict[str, Any]):
        query, key, value = (along_rows(states) for states in (query, key, value))
        heads, length, size = query.shape
        out = torch.empty_like(query)
        lse = query.new_empty(heads, length, dtype=torch.promote_types(query.dtype, torch.float32))
        tiles, *_ = _tiles(query)
        blocks, _ = mask.blocks(tiles.q, tiles.k)
        launch(
            attention_kernels.forward,
            (triton.cdiv(length, tiles.q), heads),
            *(query, key, value, out, lse, *_mask_and_alibi(mask, alibi), *blocks, length, size),
            *(heads // key.shape[0], blocks.index.shape[1], *_strides(query, key, value, out)),
            *(options["scale"] * LOG2E, options["seed"], options["dropout"]),
            **_flags(query, alibi, options, tiles),
        )
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.mask, ctx.alibi, ctx.options = mask, alibi, options
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        query, key, value, out, lse = ctx.saved_tensors
        dout = along_rows(dout)
        mask, alibi, options = ctx.mask, ctx.alibi, ctx.options
        heads, length, size = query.shape
        kv_heads = key.shape[0]
        dquery, dkey, dvalue = (torch.empty_like(states) for states in (query, key, value))
        delta = torch.empty_like(lse)
        _, tiles_query, tiles_key = _tiles(query)
        flags = _flags(query, alibi, options, tiles_query)
        launch(
            attention_kernels.delta,
            (triton.cdiv(length, tiles_query.q), heads),
            *(out, dout, delta, length, size, *_strides(out, dout)),
            **{name: flags[name] for name in ("DTYPE", "D", "BLOCK_Q")},
        )
        shared = (lse, delta, *_mask_and_alibi(mask, alibi))
        constants = (options["scale"] * LOG2E, options["seed"], options["dropout"])
        of_queries, _ = mask.blocks(tiles_query.q, tiles_query.k)
        launch(
            attention_kernels.backward_query,
            (triton.cdiv(length, tiles_query.q), heads),
            *(query, key, value, dout, dquery, *shared, *of_queries, length, size),
            *(heads // kv_heads, of_queries.index.shape[1], *_strides(query, key, value, dout, dquery), *constants),
            **flags,
        )
        _, of_keys = mask.blocks(tiles_key.q, tiles_key.k)
        launch(
            attention_kernels.backward_key,
            (triton.cdiv(length, tiles_key.k), kv_heads),
            *(query, key, value, dout, dkey, dvalue, *shared, *of_keys, length, size),
            *(heads // kv_heads, of_keys.index.shape[1], *_strides(query, key, value, dout, dkey, dvalue), *constants),
            **_flags(query, alibi, options, tiles_key),
        )
        return dquery, dkey, dvalue, None, None, None


def _strides(*states: torch.Tensor) -> list[int]:
    return [stride for tensor in states for stride in tensor.stride()[:2]]


def _mask_and_alibi(mask: ColumnMask, alibi: Alibi | None) -> tuple[torch.Tensor | None, ...]:
    tensors = mask.visible_from, mask.visible_until, *(alibi or (None, None))
    return tuple(None if tensor is None else tensor.contiguous() for tensor in tensors)


def _flags(query: torch.Tensor, alibi: Alibi | None, options: dict[str, Any], tiles: Tiles) -> dict[str, Any]:
    return {
        "ALIBI": alibi is not None,
        "DROPOUT": options["dropout"] > 0,
        "PRECISION": precision(query),
        "DTYPE": compute_dtype(query),
        "D": max(16, triton.next_power_of_2(query.shape[-1])),
        "BLOCK_Q": tiles.q,
        "BLOCK_K": tiles.k,
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
    }


def column_mask_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: ColumnMask,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
    alibi: Alibi | None = None,
) -> torch.Tensor:
    """Scaled dot-product attention of one packed row.

    query [1, heads, T, D], key [1, kv_heads, T, D], value [1, kv_heads, T, Dv] (kv_heads divides heads: GQA and MQA);
    returns [1, heads, T, Dv]. `scale` defaults to 1 / sqrt(D). Differentiable. A query that sees no key gives 0. Heads
    of more than 256, or with Dv other than D, run in plain torch on every device.

    alibi: (slopes float [heads], positions int64 [T]) adds slope * (position of key - position of query) to the scores:
    by position and not by index, so that siblings in a tree are as far from their prompt as each is alone. Raises
    ValueError for shapes, dtypes and devices that do not match.
    """
    _check(query, key, value, mask, dropout, alibi)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    query, key, value = as_autocast(query, key, value)
    if not use_triton(query) or query.shape[-1] > MAX_HEAD_DIM or value.shape[-1] != query.shape[-1]:
        return reference(query, key, value, mask, scale=scale, dropout=dropout, alibi=alibi)
    # Drawn on the CPU, whose generator gradient checkpointing restores before it computes a layer again.
    seed = int(torch.randint(2**31 - 1, ())) if dropout else 0
    options = {"scale": scale, "dropout": dropout, "seed": seed}
    return _Attention.apply(query[0], key[0], value[0], mask, alibi, options)[None]


def _check(query, key, value, mask: ColumnMask, dropout: float, alibi: Alibi | None) -> None:
    check_floating(query=query, key=key, value=value)
    if query.dim() != 4 or query.shape[0] != 1:
        raise ValueError(f"query must be [1, heads, T, D], not {list(query.shape)}")
    _, heads, length, size = query.shape
    kv_heads = key.shape[1] if key.dim() == 4 else 0
    if not kv_heads or heads % kv_heads:
        raise ValueError(f"key {list(key.shape)} must be [1, kv_heads, T, D], kv_heads a divisor of {heads}")
    check_shape("key", key, (1, kv_heads, length, size))
    check_shape("value", value, (1, kv_heads, length, value.shape[-1]))
    for name, states in (("key", key), ("value", value)):
        if states.dtype != query.dtype and not torch.is_autocast_enabled(query.device.type):
            raise ValueError(f"{name} is {states.dtype}, but query {query.dtype}")
    check_shape("mask.visible_from", mask.visible_from, (length,))
    check_shape("mask.visible_until", mask.visible_until, (length,))
    if mask.visible_from.device != query.device:
        raise ValueError(f"mask is on {mask.visible_from.device}, but query on {query.device}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout {dropout} must be in [0, 1)")
    if alibi is not None:
        check_shape("slopes of alibi", alibi[0], (heads,))
        check_shape("positions of alibi", alibi[1], (length,))


def reference(query, key, value, mask: ColumnMask, *, scale=None, dropout=0.0, alibi: Alibi | None = None):
    """The same in plain torch: neither the full [T, T] mask nor the work for masked keys is ever there."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    outputs = [
        F.scaled_dot_product_attention(
            query[:, :, queries],
            key[:, :, keys],
            value[:, :, keys],
            attn_mask=visible if alibi is None else _biased(visible, alibi, queries, keys, query.dtype),
            dropout_p=dropout,
            scale=scale,
        )
        for queries, keys, visible in mask.chunks
    ]
    if not outputs:  # no tokens
        return F.scaled_dot_product_attention(query, key, value)
    return torch.cat(outputs, dim=2) if len(outputs) > 1 else outputs[0]


def _biased(
    visible: torch.Tensor,
    alibi: Alibi,
    queries: slice,
    keys: slice | torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """bool [queries, keys] -> [heads, queries, keys] in `dtype`: the bias where visible, elsewhere -inf."""
    slopes, positions = alibi
    # Differences are taken as integers and scaled in the slopes' dtype: half precision rounds the result only.
    distance = (positions[None, keys] - positions[queries, None]).to(slopes.dtype)
    return (slopes[:, None, None] * distance).masked_fill(~visible, -torch.inf).to(dtype)

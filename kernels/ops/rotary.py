"""Rotary positions (RoFormer, arXiv 2104.09864) of queries and keys in one pass, in every layout of our models."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from keju.kernels.dispatch import along_rows, check_floating, compute_dtype, jit, launch, tl, triton, use_triton


@jit
def _turn(
    source, target, source_head, target_head, heads, first, second, rest, known, is_rest, c, s,
    COPY: tl.constexpr, DTYPE: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """All heads of one token, pairs (first, second) by the angles; the rest of each head as it is."""
    head = tl.arange(0, HEADS)[:, None].to(tl.int64)
    source += head * source_head
    target += head * target_head
    inside = (head < heads) & known
    a = tl.load(source + first, mask=inside, other=0.0).to(DTYPE)
    b = tl.load(source + second, mask=inside, other=0.0).to(DTYPE)
    tl.store(target + first, a * c - b * s, mask=inside)
    tl.store(target + second, b * c + a * s, mask=inside)
    if COPY:
        beyond = (head < heads) & is_rest
        tl.store(target + rest, tl.load(source + rest, mask=beyond), mask=beyond)


@jit
def _rotate(
    query,
    key,
    out_query,
    out_key,
    cos,
    sin,
    length,
    heads,
    kv_heads,
    head_dim,
    angles,
    group,
    table_batch,
    table_time,
    q_batch,
    q_head,
    q_time,
    k_batch,
    k_head,
    k_time,
    oq_batch,
    oq_head,
    oq_time,
    ok_batch,
    ok_head,
    ok_time,
    BACKWARD: tl.constexpr,
    COPY: tl.constexpr,
    DTYPE: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    ANGLES: tl.constexpr,
    REST: tl.constexpr,
):
    """One program turns all heads of one token, so that its angles are read once."""
    batch = (tl.program_id(0) // length).to(tl.int64)
    time = (tl.program_id(0) % length).to(tl.int64)
    angle = tl.arange(0, ANGLES)[None, :]
    known = angle < angles
    table = batch * table_batch + time * table_time + angle
    c = tl.load(cos + table, mask=known, other=0.0).to(DTYPE)
    s = tl.load(sin + table, mask=known, other=0.0).to(DTYPE)
    if BACKWARD:
        s = -s
    first = angle // group * (2 * group) + angle % group
    second = first + group
    rest = 2 * angles + tl.arange(0, REST)[None, :]

    _turn(
        query + batch * q_batch + time * q_time, out_query + batch * oq_batch + time * oq_time, q_head, oq_head, heads,
        first, second, rest, known, rest < head_dim, c, s, COPY, DTYPE, HEADS,
    )  # fmt: skip
    _turn(
        key + batch * k_batch + time * k_time, out_key + batch * ok_batch + time * ok_time, k_head, ok_head, kv_heads,
        first, second, rest, known, rest < head_dim, c, s, COPY, DTYPE, KV_HEADS,
    )  # fmt: skip


def _run(query, key, out_query, out_key, cos, sin, group: int, *, backward: bool) -> None:
    batch, heads, length, head_dim = query.shape
    kv_heads, angles = key.shape[1], cos.shape[-1]
    rest = head_dim - 2 * angles
    in_place = out_query is query
    launch(
        _rotate,
        (batch * length,),
        *(query, key, out_query, out_key, cos, sin, length, heads, kv_heads, head_dim, angles, group),
        *(0 if cos.shape[0] == 1 else cos.stride(0), cos.stride(1)),
        *(stride for states in (query, key, out_query, out_key) for stride in states.stride()[:3]),
        BACKWARD=backward,
        COPY=rest > 0 and not in_place,
        DTYPE=compute_dtype(query),
        HEADS=triton.next_power_of_2(heads),
        KV_HEADS=triton.next_power_of_2(kv_heads),
        ANGLES=triton.next_power_of_2(angles),
        REST=triton.next_power_of_2(max(rest, 1)),
        num_warps=4,
    )


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, cos, sin, group: int, in_place_backward: bool):
        query, key = along_rows(query), along_rows(key)
        out_query, out_key = torch.empty_like(query), torch.empty_like(key)
        _run(query, key, out_query, out_key, cos, sin, group, backward=False)
        ctx.save_for_backward(cos, sin)
        ctx.group, ctx.in_place = group, in_place_backward
        return out_query, out_key

    @staticmethod
    @once_differentiable
    def backward(ctx, dquery, dkey):
        cos, sin = ctx.saved_tensors
        dquery, dkey = along_rows(dquery), along_rows(dkey)
        targets = (dquery, dkey) if ctx.in_place else (torch.empty_like(dquery), torch.empty_like(dkey))
        _run(dquery, dkey, *targets, cos, sin, ctx.group, backward=True)
        return *targets, None, None, None, None


def rotary(
    query: torch.Tensor,
    key: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    group: int | None = None,
    in_place_backward: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turns pairs of elements of each head: (a, b) -> (a cos - b sin, b cos + a sin), in float32.

    query [B, heads, T, D], key [B, kv_heads, T, D]; cos and sin [B or 1, T, R], one angle for each of R <= D / 2 pairs,
    whatever position each token has. The 2R first elements of a head are turned, the others stay as they are.

    Element i of `group` neighbours is paired with the one `group` further on: R (the default) is the half-split layout
    of Llama, 1 the interleaved one of GPT-J and GLM, R / 2 the two blocks of ChatGLM, each with positions of its own.

    in_place_backward: the gradients of the results are turned where they lie. Only where nothing else reads them: what
    goes into attention and nowhere else. cos and sin get no gradient. Raises ValueError for other shapes than these.
    """
    check_floating(query=query, key=key, cos=cos, sin=sin)
    angles, head_dim = cos.shape[-1], query.shape[-1]
    group = angles if group is None else group
    if query.dim() != 4 or key.dim() != 4 or _without_heads(query) != _without_heads(key):
        raise ValueError(f"query {list(query.shape)} and key {list(key.shape)} must be 4-D and differ in heads only")
    if cos.shape != sin.shape or cos.shape[:2] not in [(query.shape[0], query.shape[2]), (1, query.shape[2])]:
        raise ValueError(
            f"cos {list(cos.shape)} and sin {list(sin.shape)} must be [{query.shape[0]}, {query.shape[2]}, R]"
        )
    if 2 * angles > head_dim:
        raise ValueError(f"cos holds {angles} angles, too many for heads of {head_dim}")
    if not 1 <= group <= angles or angles % group:
        raise ValueError(f"group {group} must divide the {angles} angles of cos")
    if not use_triton(query):
        return reference(query, cos, sin, group), reference(key, cos, sin, group)
    if cos.stride() != sin.stride() or cos.stride(-1) != 1:  # the kernel reads both by one set of strides
        cos, sin = cos.contiguous(), sin.contiguous()
    return _Rotary.apply(query, key, cos, sin, group, in_place_backward)


def _without_heads(states: torch.Tensor) -> tuple[Any, ...]:
    return (states.shape[0], *states.shape[2:])


def reference(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, group: int) -> torch.Tensor:
    """The same in plain torch, for queries or keys."""
    turned, rest = states.split([2 * cos.shape[-1], states.shape[-1] - 2 * cos.shape[-1]], dim=-1)
    wide = torch.promote_types(states.dtype, torch.float32)
    # [..., blocks, 2, group]: a pair differs in the middle
    first, second = turned.to(wide).unflatten(-1, (-1, 2, group)).unbind(-2)
    cos, sin = (table[:, None].to(wide).unflatten(-1, (-1, group)) for table in (cos, sin))
    pairs = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-2)
    return torch.cat([pairs.flatten(-3).to(states.dtype), rest], dim=-1)

"""The kernels under column_mask_attention: one block of scores at a time, no block of keys that is wholly masked.

Scores are in units of log 2, for exp2. Of the blocks that a program meets, those that are visible whole come last and
look at no mask.
"""

from __future__ import annotations

from keju.kernels.dispatch import jit, tl
from keju.kernels.products import dot


@jit
def _rows(base, row, rows, stride, size, D: tl.constexpr):
    """[len(row), D] of a matrix with `rows` rows of `size` elements; 0 beyond."""
    col = tl.arange(0, D)
    inside = (row[:, None] < rows) & (col[None, :] < size)
    return tl.load(base + row[:, None].to(tl.int64) * stride + col[None, :], mask=inside, other=0.0)


@jit
def _store_rows(base, values, row, rows, stride, size, D: tl.constexpr):
    col = tl.arange(0, D)
    inside = (row[:, None] < rows) & (col[None, :] < size)
    tl.store(base + row[:, None].to(tl.int64) * stride + col[None, :], values, mask=inside)


@jit
def _scores(
    product, q_row, k_row, begin, until, slope, positions, length, scale, MASKED: tl.constexpr, ALIBI: tl.constexpr
):
    """[queries, keys] in units of log 2: scaled, with ALiBi, -inf where masked. q_row [Q, 1], k_row [1, K], or the
    other way round, as the product is."""
    s = product * scale
    if ALIBI:
        q_position = tl.load(positions + q_row, mask=q_row < length, other=0)
        k_position = tl.load(positions + k_row, mask=k_row < length, other=0)
        s += slope * (k_position - q_position).to(s.dtype)
    if MASKED:
        visible = tl.load(begin + k_row, mask=k_row < length, other=length) <= q_row
        visible &= q_row < tl.load(until + k_row, mask=k_row < length, other=0)
        s = tl.where(visible, s, float("-inf"))
    return s


@jit
def _kept(seed, head, q_row, k_row, length, dropout):
    """1 / (1 - dropout) where the probability stays, 0 where it is dropped; the same in all kernels."""
    offset = (head.to(tl.int64) * length + q_row) * length + k_row
    return tl.where(tl.rand(seed, offset) >= dropout, 1 / (1 - dropout), 0.0)


@jit
def forward(
    query,
    key,
    value,
    out,
    lse,
    begin,
    until,
    slopes,
    positions,
    index,
    num_partial,
    num_met,
    length,
    size,
    groups,
    num_blocks,
    q_head,
    q_time,
    k_head,
    k_time,
    v_head,
    v_time,
    o_head,
    o_time,
    scale,
    seed,
    dropout,
    ALIBI: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
    DTYPE: tl.constexpr,
    D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    block, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    key += head // groups * k_head
    value += head // groups * v_head
    q = _rows(query + head * q_head, row, length, q_time, size, D)
    slope = tl.load(slopes + head).to(DTYPE) * 1.4426950408889634 if ALIBI else 0.0
    highest = tl.full([BLOCK_Q], float("-inf"), DTYPE)
    mass = tl.zeros([BLOCK_Q], DTYPE)
    total = tl.zeros([BLOCK_Q, D], DTYPE)
    partial, met = tl.load(num_partial + block), tl.load(num_met + block)
    for whole in tl.static_range(2):
        for number in range(0 if whole == 0 else partial, partial if whole == 0 else met):
            k_row = tl.load(index + block.to(tl.int64) * num_blocks + number) * BLOCK_K + tl.arange(0, BLOCK_K)
            k = _rows(key, k_row, length, k_time, size, D)
            product = dot(q, tl.trans(k), PRECISION, DTYPE)
            s = _scores(
                product, row[:, None], k_row[None, :], begin, until, slope, positions, length, scale, whole == 0, ALIBI
            )
            higher = tl.maximum(highest, tl.max(s, axis=1))
            # A row that has seen no key yet stays at -inf; subtracting that from itself would be NaN.
            level = tl.where(higher == float("-inf"), 0.0, higher)
            p = tl.exp2(s - level[:, None])
            shrink = tl.exp2(highest - level)
            mass = mass * shrink + tl.sum(p, axis=1)
            if DROPOUT:
                p *= _kept(seed, head, row[:, None], k_row[None, :], length, dropout)
            v = _rows(value, k_row, length, v_time, size, D)
            total = total * shrink[:, None] + dot(p.to(v.dtype), v, PRECISION, DTYPE)
            highest = higher
    seen = mass > 0
    total /= tl.where(seen, mass, 1.0)[:, None]
    _store_rows(out + head * o_head, total, row, length, o_time, size, D)
    # A query that sees nothing gives 0; with +inf its probabilities are 0 in the backward pass, too.
    level = tl.where(seen, highest + tl.log2(tl.where(seen, mass, 1.0)), float("inf"))
    tl.store(lse + head * length + row, level, mask=row < length)


@jit
def delta(
    out, dout, delta, length, size, o_head, o_time, do_head, do_time, DTYPE: tl.constexpr, D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """sum(out * dout) of each row, which softmax takes off its gradients (FlashAttention-2, algorithm 2, line 4)."""
    head = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    o = _rows(out + head * o_head, row, length, o_time, size, D).to(DTYPE)
    do = _rows(dout + head * do_head, row, length, do_time, size, D).to(DTYPE)
    tl.store(delta + head * length + row, tl.sum(o * do, axis=1), mask=row < length)


@jit
def backward_query(
    query,
    key,
    value,
    dout,
    dquery,
    lse,
    delta,
    begin,
    until,
    slopes,
    positions,
    index,
    num_partial,
    num_met,
    length,
    size,
    groups,
    num_blocks,
    q_head,
    q_time,
    k_head,
    k_time,
    v_head,
    v_time,
    do_head,
    do_time,
    dq_head,
    dq_time,
    scale,
    seed,
    dropout,
    ALIBI: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
    DTYPE: tl.constexpr,
    D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    block, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    key += head // groups * k_head
    value += head // groups * v_head
    q = _rows(query + head * q_head, row, length, q_time, size, D)
    do = _rows(dout + head * do_head, row, length, do_time, size, D)
    level = tl.load(lse + head * length + row, mask=row < length, other=float("inf"))
    offset = tl.load(delta + head * length + row, mask=row < length, other=0.0)
    slope = tl.load(slopes + head).to(DTYPE) * 1.4426950408889634 if ALIBI else 0.0
    dq = tl.zeros([BLOCK_Q, D], DTYPE)
    partial, met = tl.load(num_partial + block), tl.load(num_met + block)
    for whole in tl.static_range(2):
        for number in range(0 if whole == 0 else partial, partial if whole == 0 else met):
            k_row = tl.load(index + block.to(tl.int64) * num_blocks + number) * BLOCK_K + tl.arange(0, BLOCK_K)
            k = _rows(key, k_row, length, k_time, size, D)
            v = _rows(value, k_row, length, v_time, size, D)
            product = dot(q, tl.trans(k), PRECISION, DTYPE)
            s = _scores(
                product, row[:, None], k_row[None, :], begin, until, slope, positions, length, scale, whole == 0, ALIBI
            )
            p = tl.exp2(s - level[:, None])
            dp = dot(do, tl.trans(v), PRECISION, DTYPE)
            if DROPOUT:
                dp *= _kept(seed, head, row[:, None], k_row[None, :], length, dropout)
            ds = p * (dp - offset[:, None])
            dq += dot(ds.to(k.dtype), k, PRECISION, DTYPE)
    _store_rows(dquery + head * dq_head, dq * (scale / 1.4426950408889634), row, length, dq_time, size, D)


@jit
def backward_key(
    query,
    key,
    value,
    dout,
    dkey,
    dvalue,
    lse,
    delta,
    begin,
    until,
    slopes,
    positions,
    index,
    num_partial,
    num_met,
    length,
    size,
    groups,
    num_blocks,
    q_head,
    q_time,
    k_head,
    k_time,
    v_head,
    v_time,
    do_head,
    do_time,
    dk_head,
    dk_time,
    dv_head,
    dv_time,
    scale,
    seed,
    dropout,
    ALIBI: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
    DTYPE: tl.constexpr,
    D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """All query heads that share a key head, one after another: nothing is added up between programs."""
    block, kv_head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    k_row = block * BLOCK_K + tl.arange(0, BLOCK_K)
    k = _rows(key + kv_head * k_head, k_row, length, k_time, size, D)
    v = _rows(value + kv_head * v_head, k_row, length, v_time, size, D)
    dk = tl.zeros([BLOCK_K, D], DTYPE)
    dv = tl.zeros([BLOCK_K, D], DTYPE)
    partial, met = tl.load(num_partial + block), tl.load(num_met + block)
    for member in range(0, groups):
        head = kv_head * groups + member
        slope = tl.load(slopes + head).to(DTYPE) * 1.4426950408889634 if ALIBI else 0.0
        for whole in tl.static_range(2):
            for number in range(0 if whole == 0 else partial, partial if whole == 0 else met):
                row = tl.load(index + block.to(tl.int64) * num_blocks + number) * BLOCK_Q + tl.arange(0, BLOCK_Q)
                q = _rows(query + head * q_head, row, length, q_time, size, D)
                do = _rows(dout + head * do_head, row, length, do_time, size, D)
                level = tl.load(lse + head * length + row, mask=row < length, other=float("inf"))
                offset = tl.load(delta + head * length + row, mask=row < length, other=0.0)
                # Keys along the rows: the transposed products need no transposed accumulator.
                product = dot(k, tl.trans(q), PRECISION, DTYPE)
                s = _scores(
                    product, row[None, :], k_row[:, None], begin, until, slope, positions, length, scale, whole == 0,
                    ALIBI,
                )  # fmt: skip
                p = tl.exp2(s - level[None, :])
                dp = dot(v, tl.trans(do), PRECISION, DTYPE)
                dropped = p
                if DROPOUT:
                    kept = _kept(seed, head, row[None, :], k_row[:, None], length, dropout)
                    dropped = p * kept
                    dp *= kept
                dv += dot(dropped.to(do.dtype), do, PRECISION, DTYPE)
                ds = p * (dp - offset[None, :])
                dk += dot(ds.to(q.dtype), q, PRECISION, DTYPE)
    _store_rows(dkey + kv_head * dk_head, dk * (scale / 1.4426950408889634), k_row, length, dk_time, size, D)
    _store_rows(dvalue + kv_head * dv_head, dv, k_row, length, dv_time, size, D)

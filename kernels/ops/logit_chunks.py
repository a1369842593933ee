"""A piece of the logits at a time: what linear_logprob and linear_cross_entropy take from it, and its gradient.

Each has a Triton kernel and plain torch; the matrix products around them are torch's in either case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from keju.kernels.dispatch import compute_dtype, jit, launch, tl, triton, use_triton

BLOCK = 4096
# Elements of logits alive at once. On the CPU small pieces stay near the cache; a GPU wants large matrix products.
MAX_LOGITS_CPU = 2**24
MAX_LOGITS_CUDA = 2**27


@dataclass(frozen=True)
class Transform:
    """logits = softcap(scale * raw) / temperature of raw = hidden @ weight.T + bias; softcap(x) = c tanh(x / c)."""

    temperature: float = 1.0
    scale: float = 1.0
    softcap: float | None = None

    def __post_init__(self):
        if self.temperature <= 0:
            raise ValueError(f"temperature {self.temperature} must be above 0")
        if self.softcap is not None and self.softcap <= 0:
            raise ValueError(f"softcap {self.softcap} must be above 0")

    def __call__(self, raw: torch.Tensor) -> torch.Tensor:
        """Any shape; float32, or float64 for float64. The input itself comes back where nothing changes it."""
        logits = raw.to(wide(raw))
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits * (self.scale / self.softcap))
        elif self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.temperature == 1.0 else logits / self.temperature

    @property
    def constants(self) -> tuple[float, float, float]:
        """(inner, cap, outer): logits are outer * raw, with a cap outer * tanh(inner * raw)."""
        if self.softcap is None:
            return 1.0, 0.0, self.scale / self.temperature
        return self.scale / self.softcap, self.softcap, self.softcap / self.temperature


def wide(tensor: torch.Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def max_logits(tensor: torch.Tensor) -> int:
    return MAX_LOGITS_CUDA if tensor.is_cuda else MAX_LOGITS_CPU


class Statistics(NamedTuple):
    """Of each row: log sum exp, the mean of the logits under their softmax, their sum. [N] each."""

    lse: torch.Tensor
    expected: torch.Tensor | None
    total: torch.Tensor | None

    def merged(self, other: Statistics) -> Statistics:
        """Those of both pieces of the vocabulary together."""
        lse = torch.logaddexp(self.lse, other.lse)
        expected = total = None
        if self.expected is not None:
            expected = (self.lse - lse).exp() * self.expected + (other.lse - lse).exp() * other.expected
        if self.total is not None:
            total = self.total + other.total
        return Statistics(lse, expected, total)


class Upstream(NamedTuple):
    """Gradients of a loss with respect to log p(target), log sum exp, entropy and the mean of all logits; float [N]."""

    logprob: torch.Tensor
    lse: torch.Tensor | None = None
    entropy: torch.Tensor | None = None
    mean: torch.Tensor | None = None


@jit
def _logits(raw, inner, outer, CAPPED: tl.constexpr):
    if CAPPED:
        # tanh(x) = 2 sigmoid(2 x) - 1
        return outer * (2 / (1 + tl.exp(-2 * inner * raw)) - 1)
    return outer * raw


@jit
def _statistics(
    raw,
    lse,
    expected,
    total,
    columns,
    stride,
    inner,
    outer,
    CAPPED: tl.constexpr,
    WITH_EXPECTED: tl.constexpr,
    WITH_TOTAL: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    highest = tl.full([1], float("-inf"), DTYPE)
    mass = tl.zeros([1], DTYPE)
    weighted = tl.zeros([1], DTYPE)
    plain = tl.zeros([1], DTYPE)
    for start in range(0, columns, BLOCK):
        col = start + tl.arange(0, BLOCK)
        x = _logits(tl.load(raw + row * stride + col, mask=col < columns, other=0.0).to(DTYPE), inner, outer, CAPPED)
        hidden = tl.where(col < columns, x, float("-inf"))
        higher = tl.maximum(highest, tl.max(hidden, axis=0, keep_dims=True))
        shrink = tl.exp(highest - higher)
        weight = tl.exp(hidden - higher)
        mass = mass * shrink + tl.sum(weight, axis=0, keep_dims=True)
        if WITH_EXPECTED:
            weighted = weighted * shrink + tl.sum(weight * x, axis=0, keep_dims=True)
        if WITH_TOTAL:
            plain += tl.sum(tl.where(col < columns, x, 0.0), axis=0, keep_dims=True)
        highest = higher
    one = tl.arange(0, 1)
    tl.store(lse + row + one, highest + tl.log(mass))
    if WITH_EXPECTED:
        tl.store(expected + row + one, weighted / mass)
    if WITH_TOTAL:
        tl.store(total + row + one, plain)


def statistics(raw: torch.Tensor, transform: Transform, *, with_expected: bool, with_total: bool) -> Statistics:
    """raw [N, C], a piece of the vocabulary or all of it."""
    if not use_triton(raw):
        logits = transform(raw)
        expected = (torch.softmax(logits, dim=1) * logits).sum(1) if with_expected else None
        return Statistics(torch.logsumexp(logits, dim=1), expected, logits.sum(1) if with_total else None)
    rows, columns = raw.shape
    lse, expected, total = (
        raw.new_empty(rows, dtype=wide(raw)) if wanted else None for wanted in (True, with_expected, with_total)
    )
    inner, cap, outer = transform.constants
    launch(
        _statistics,
        (rows,),
        *(raw, lse, expected, total, columns, raw.stride(0), inner, outer),
        CAPPED=cap > 0,
        WITH_EXPECTED=with_expected,
        WITH_TOTAL=with_total,
        DTYPE=compute_dtype(raw),
        BLOCK=_block(columns),
        num_warps=8,
    )
    return Statistics(lse, expected, total)


@jit
def _gradient(
    raw,
    out,
    target,
    lse,
    expected,
    d_logprob,
    d_lse,
    d_entropy,
    d_mean,
    columns,
    stride,
    first,
    vocab_size,
    inner,
    outer,
    CAPPED: tl.constexpr,
    WITH_LSE: tl.constexpr,
    WITH_ENTROPY: tl.constexpr,
    WITH_MEAN: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = col < columns
    x = _logits(tl.load(raw + row * stride + col, mask=inside, other=0.0).to(DTYPE), inner, outer, CAPPED)
    of_target = tl.load(d_logprob + row)
    share = -of_target
    if WITH_LSE:
        share += tl.load(d_lse + row)
    if WITH_ENTROPY:
        share = share - tl.load(d_entropy + row) * (x - tl.load(expected + row))
    g = tl.exp(x - tl.load(lse + row)) * share
    if WITH_MEAN:
        g += tl.load(d_mean + row) / vocab_size
    g += tl.where(first + col == tl.load(target + row), of_target, 0.0)
    if CAPPED:
        ratio = x / outer
        g *= (1 - ratio * ratio) * inner
    tl.store(out + row * columns + col, g * outer, mask=inside)


def gradient(
    raw: torch.Tensor,
    target: torch.Tensor,
    found: Statistics,
    upstream: Upstream,
    transform: Transform,
    *,
    first: int = 0,
    vocab_size: int | None = None,
) -> torch.Tensor:
    """Gradient of the loss with respect to raw [N, C], in its dtype.

    raw is the piece of the vocabulary (of `vocab_size` tokens) that begins at `first`; `found` is of the whole. With
    p = softmax(l): d log p_t / dl = 1_t - p, d lse / dl = p, d entropy / dl = -p (l - E[l]), d mean / dl = 1 / vocab.
    """
    rows, columns = raw.shape
    vocab_size = vocab_size or columns
    inner, cap, outer = transform.constants
    if use_triton(raw):
        out = torch.empty_like(raw, memory_format=torch.contiguous_format)
        block = _block(columns)
        launch(
            _gradient,
            (rows, triton.cdiv(columns, block)),
            *(raw, out, target, found.lse, found.expected, *(None if x is None else x.contiguous() for x in upstream)),
            *(columns, raw.stride(0), first, vocab_size, inner, outer),
            CAPPED=cap > 0,
            WITH_LSE=upstream.lse is not None,
            WITH_ENTROPY=upstream.entropy is not None,
            WITH_MEAN=upstream.mean is not None,
            DTYPE=compute_dtype(raw),
            BLOCK=block,
            num_warps=8,
        )
        return out
    logits = transform(raw)
    share = -upstream.logprob if upstream.lse is None else upstream.lse - upstream.logprob
    g = (logits - found.lse[:, None]).exp_()
    if upstream.entropy is None:
        g.mul_(share[:, None])
    else:
        g.mul_(share[:, None] - upstream.entropy[:, None] * (logits - found.expected[:, None]))
    if upstream.mean is not None:
        g.add_(upstream.mean[:, None] / vocab_size)
    here, local = locate(target, first, columns)
    g.scatter_add_(1, local[:, None], torch.where(here, upstream.logprob, 0.0)[:, None])
    if cap:
        g.mul_((1 - (logits / outer).square()) * inner)
    return (g if outer == 1.0 else g.mul_(outer)).to(raw.dtype)


def locate(target: torch.Tensor, first: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether each target lies in a piece of the vocabulary, and where (some column, if it does not). [N] each."""
    here = (target >= first) & (target < first + columns)
    return here, (target - first).clamp(0, columns - 1)


def _block(columns: int) -> int:
    return min(BLOCK, triton.next_power_of_2(columns))

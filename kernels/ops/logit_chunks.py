"""A piece of the logits at a time: what linear_logprob and linear_cross_entropy take from it, and its gradient.

Each has a Triton kernel and plain torch; the matrix products around them are torch's in either case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from keju.kernels.dispatch import compute_dtype, jit, launch, on_gpu, tl, triton, use_triton

BLOCK = 4096
# Elements of logits alive at once. What is not more stays in one piece and is not computed twice. A GPU wants large
# matrix products; on the CPU pieces of the vocabulary, of which there may be many, are to fit into the cache.
MAX_LOGITS_CUDA = 2**27
MAX_LOGITS_CPU = 2**24
VOCAB_PIECE_CPU = 2**20


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


def max_logits(tensor: torch.Tensor) -> tuple[int, int]:
    """How many logits to have at once, and how many in a piece of the vocabulary where there are more."""
    return (MAX_LOGITS_CUDA, MAX_LOGITS_CUDA) if on_gpu(tensor) else (MAX_LOGITS_CPU, VOCAB_PIECE_CPU)


class Statistics(NamedTuple):
    """Of each row: log sum exp, the entropy of the softmax, the sum of the logits. [N] each."""

    lse: torch.Tensor
    entropy: torch.Tensor | None
    total: torch.Tensor | None

    def merged(self, other: Statistics) -> Statistics:
        """Those of both pieces of the vocabulary together."""
        lse = torch.logaddexp(self.lse, other.lse)
        entropy = total = None
        if self.entropy is not None:
            # Of a mixture of two distributions that share no token; differences of large numbers are nowhere taken.
            shares = (self.lse - lse), (other.lse - lse)
            entropy = shares[0].exp() * (self.entropy - shares[0]) + shares[1].exp() * (other.entropy - shares[1])
        if self.total is not None:
            total = self.total + other.total
        return Statistics(lse, entropy, total)


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
    entropy,
    total,
    columns,
    stride,
    inner,
    outer,
    CAPPED: tl.constexpr,
    WITH_ENTROPY: tl.constexpr,
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
        if WITH_ENTROPY:
            # Sum of weight * (logit - highest): what has been summed so far is measured from another highest.
            lift = tl.where(mass > 0, highest - higher, 0.0)
            below = tl.sum(tl.where(col < columns, weight * (x - higher), 0.0), axis=0, keep_dims=True)
            weighted = shrink * (weighted + lift * mass) + below
        mass = mass * shrink + tl.sum(weight, axis=0, keep_dims=True)
        if WITH_TOTAL:
            plain += tl.sum(tl.where(col < columns, x, 0.0), axis=0, keep_dims=True)
        highest = higher
    one = tl.arange(0, 1)
    tl.store(lse + row + one, highest + tl.log(mass))
    if WITH_ENTROPY:
        tl.store(entropy + row + one, tl.log(mass) - weighted / mass)
    if WITH_TOTAL:
        tl.store(total + row + one, plain)


def statistics(raw: torch.Tensor, transform: Transform, *, with_entropy: bool, with_total: bool) -> Statistics:
    """raw [N, C], a piece of the vocabulary or all of it."""
    if not use_triton(raw):
        logits = transform(raw)
        lse, entropy = torch.logsumexp(logits, dim=1), None
        if with_entropy:
            logprobs = logits - lse[:, None]
            entropy = -(logprobs.exp() * logprobs).sum(1)
        return Statistics(lse, entropy, logits.sum(1) if with_total else None)
    rows, columns = raw.shape
    lse, entropy, total = (
        raw.new_empty(rows, dtype=wide(raw)) if wanted else None for wanted in (True, with_entropy, with_total)
    )
    inner, cap, outer = transform.constants
    launch(
        _statistics,
        (rows,),
        *(raw, lse, entropy, total, columns, raw.stride(0), inner, outer),
        CAPPED=cap > 0,
        WITH_ENTROPY=with_entropy,
        WITH_TOTAL=with_total,
        DTYPE=compute_dtype(raw),
        BLOCK=_block(columns),
        num_warps=8,
    )
    return Statistics(lse, entropy, total)


@jit
def _gradient(
    raw,
    out,
    target,
    lse,
    entropy,
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
    logprob = x - tl.load(lse + row)
    of_target = tl.load(d_logprob + row)
    share = -of_target
    if WITH_LSE:
        share += tl.load(d_lse + row)
    if WITH_ENTROPY:
        share = share - tl.load(d_entropy + row) * (logprob + tl.load(entropy + row))
    g = tl.exp(logprob) * share
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
    p = softmax(l): d log p_t / dl = 1_t - p, d lse / dl = p, d entropy / dl = -p (log p + entropy), and d mean / dl =
    1 / vocab_size.
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
            *(
                raw,
                out,
                target.contiguous(),
                found.lse,
                found.entropy,
                *(None if x is None else x.contiguous() for x in upstream),
            ),
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
    g = logits - found.lse[:, None]
    if upstream.entropy is None:
        g.exp_().mul_(share[:, None])
    else:
        g = g.exp() * (share[:, None] - upstream.entropy[:, None] * (g + found.entropy[:, None]))
    if upstream.mean is not None:
        g.add_(upstream.mean[:, None] / vocab_size)
    here, local = locate(target, first, columns)
    g.scatter_add_(1, local[:, None], torch.where(here, upstream.logprob, 0.0)[:, None])
    if cap:
        g.mul_((1 - (logits / outer).square()) * inner)
    return (g if outer == 1.0 else g.mul_(outer)).to(raw.dtype)


def logits_at(raw: torch.Tensor, column: torch.Tensor, transform: Transform) -> torch.Tensor:
    """[N]: of each row of raw [N, C] the logit at its column."""
    return transform(raw.gather(1, column[:, None]).squeeze(1))


def locate(target: torch.Tensor, first: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether each target lies in a piece of the vocabulary, and where (some column, if it does not). [N] each."""
    here = (target >= first) & (target < first + columns)
    return here, (target - first).clamp(0, columns - 1)


def _block(columns: int) -> int:
    return min(BLOCK, triton.next_power_of_2(columns))

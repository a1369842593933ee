"""Log-probabilities of targets from hidden states, without the [tokens, vocabulary] logits of the whole batch.

The vocabulary goes by in pieces: all rows meet one piece, and of its logits only a few sums per row stay. The backward
pass computes each piece once more, and with it the gradient of that share of the head in one product: nothing has the
size of the logits, nothing is accumulated in low precision. If the head is frozen (LoRA), rows go by in pieces instead,
and the gradient of the hidden states is made in the forward pass: nothing is computed twice.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from keju.kernels.dispatch import as_autocast, check_floating, check_shape, check_targets
from keju.kernels.logit_chunks import (
    Statistics,
    Transform,
    Upstream,
    gradient,
    locate,
    logits_at,
    max_logits,
    statistics,
)

VOCAB_MULTIPLE = 128


class LinearLogprob(NamedTuple):
    """logprobs: float32 [N]; entropy: float32 [N] of the predicted distribution, or None when not asked for."""

    logprobs: torch.Tensor
    entropy: torch.Tensor | None


class SoftmaxFigures(torch.autograd.Function):
    """(log p(target), log sum exp, entropy or None, mean logit or None), [N] each; all with gradients.

    options: transform, with_entropy, with_mean, max_logits, vocab_piece.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, target, options: dict[str, Any]):
        transform, vocab_size = options["transform"], weight.shape[0]
        width = vocab_size
        if len(hidden) * vocab_size > options["max_logits"]:
            fitting = options["vocab_piece"] // len(hidden) // VOCAB_MULTIPLE * VOCAB_MULTIPLE
            width = min(vocab_size, max(VOCAB_MULTIPLE, fitting))
        found = chosen = None
        for first in range(0, vocab_size, width):
            raw = _raw_logits(hidden, weight, bias, first, width)
            here, local = locate(target, first, raw.shape[1])
            picked = logits_at(raw, local, transform)
            chosen = picked if chosen is None else torch.where(here, picked, chosen)
            piece = statistics(raw, transform, with_entropy=options["with_entropy"], with_total=options["with_mean"])
            found = piece if found is None else found.merged(piece)
        # One piece is all there is: it stays.
        ctx.save_for_backward(hidden, weight, bias, target, raw if width == vocab_size else None, *found)
        ctx.transform, ctx.width = transform, width
        ctx.set_materialize_grads(False)
        mean = found.total / vocab_size if options["with_mean"] else None
        entropy = None if found.entropy is None else found.entropy.clone()
        return chosen - found.lse, found.lse.clone(), entropy, mean

    @staticmethod
    @once_differentiable
    def backward(ctx, d_logprob, d_lse, d_entropy, d_mean):
        hidden, weight, bias, target, kept, *found = ctx.saved_tensors
        found, vocab_size = Statistics(*found), weight.shape[0]
        if d_logprob is None:
            d_logprob = torch.zeros_like(found.lse)
        upstream = Upstream(d_logprob, d_lse, d_entropy, d_mean)
        for_hidden, for_weight, for_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.zeros(hidden.shape, dtype=found.lse.dtype, device=hidden.device) if for_hidden else None
        d_weight = torch.empty_like(weight, memory_format=torch.contiguous_format) if for_weight else None
        d_bias = torch.empty_like(bias) if for_bias else None
        for first in range(0, vocab_size, ctx.width):
            piece = slice(first, first + ctx.width)
            raw = kept if kept is not None else _raw_logits(hidden, weight, bias, first, ctx.width)
            d_raw = gradient(raw, target, found, upstream, ctx.transform, first=first, vocab_size=vocab_size)
            if for_hidden:
                accumulate(d_hidden, d_raw, weight[piece])
            if for_weight:
                torch.mm(d_raw.t(), hidden, out=d_weight[piece])
            if for_bias:
                d_bias[piece] = d_raw.sum(0)
        return None if d_hidden is None else d_hidden.to(hidden.dtype), d_weight, d_bias, None, None


class _OfFrozenHead(torch.autograd.Function):
    """log p(target) [N]; its gradient with respect to each hidden state is found in the forward pass."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, target, options: dict[str, Any]):
        transform, rows = options["transform"], max(1, options["max_logits"] // weight.shape[0])
        logprobs, slope = [], torch.empty_like(hidden, memory_format=torch.contiguous_format)
        for start in range(0, len(hidden), rows):
            piece = slice(start, start + rows)
            raw = F.linear(hidden[piece], weight, bias)
            found = statistics(raw, transform, with_entropy=False, with_total=False)
            logprobs.append(logits_at(raw, target[piece], transform) - found.lse)
            one = Upstream(torch.ones_like(found.lse))
            torch.mm(gradient(raw, target[piece], found, one, transform), weight, out=slope[piece])
        ctx.save_for_backward(slope)
        return torch.cat(logprobs)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_logprob):
        (slope,) = ctx.saved_tensors
        return (d_logprob[:, None] * slope).to(slope.dtype), None, None, None, None


def _raw_logits(hidden, weight, bias, first: int, width: int) -> torch.Tensor:
    piece = slice(first, first + width)
    return F.linear(hidden, weight[piece], None if bias is None else bias[piece])


def accumulate(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """total += left @ right; the sum is kept in the dtype of total."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def linear_logprob(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    temperature: float = 1.0,
    scale: float = 1.0,
    softcap: float | None = None,
    with_entropy: bool = False,
    max_elements: int | None = None,
) -> LinearLogprob:
    """log softmax(logits)[target], logits = softcap(scale * (hidden @ weight.T + bias)) / temperature.

    hidden [N, H], weight [V, H], target int64 [N], bias [V]; softcap(x) = c * tanh(x / c) as Gemma 2 has it. Softmax
    and results are float32 (float64 for float64). Both results have gradients. At most `max_elements` logits are alive
    at once; the default depends on the device. Under torch.autocast the products are taken in its dtype. Raises
    ValueError for shapes, dtypes and devices that do not match, and for targets outside of the vocabulary.
    """
    options = checked_options(hidden, weight, target, bias, max_elements, Transform(temperature, scale, softcap))
    hidden, weight, bias = as_autocast(hidden, weight, bias)
    frozen = not weight.requires_grad and (bias is None or not bias.requires_grad)
    if len(hidden) and frozen and hidden.requires_grad and torch.is_grad_enabled() and not with_entropy:
        return LinearLogprob(_OfFrozenHead.apply(hidden, weight, bias, target, options), None)
    options |= {"with_entropy": with_entropy, "with_mean": False}
    logprobs, _, entropy, _ = SoftmaxFigures.apply(hidden, weight, bias, target, options)
    return LinearLogprob(logprobs, entropy)


def checked_options(hidden, weight, target, bias, max_elements: int | None, transform: Transform) -> dict[str, Any]:
    """Raises ValueError naming what is wrong with the arguments of this op and of linear_cross_entropy."""
    check_floating(hidden=hidden, weight=weight, bias=bias)
    if hidden.dim() != 2:
        raise ValueError(f"hidden must be [N, H], not {list(hidden.shape)}")
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[1]:
        raise ValueError(f"weight must be [V, {hidden.shape[1]}], not {list(weight.shape)}")
    check_shape("bias", bias, weight.shape[:1])
    check_targets(target, len(hidden), weight.shape[0], hidden.device)
    if max_elements is not None and max_elements < 1:
        raise ValueError(f"max_elements {max_elements} must be positive")
    limit, piece = max_logits(hidden) if max_elements is None else (max_elements, max_elements)
    return {"transform": transform, "max_logits": limit, "vocab_piece": piece}


def reference(
    hidden, weight, target, bias=None, *, temperature=1.0, scale=1.0, softcap=None, with_entropy=False
) -> LinearLogprob:
    """The same in plain torch with all logits at once."""
    logits = Transform(temperature, scale, softcap)(F.linear(hidden, weight, bias))
    logprobs = F.log_softmax(logits, dim=-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1) if with_entropy else None
    return LinearLogprob(logprobs.gather(1, target[:, None]).squeeze(1), entropy)

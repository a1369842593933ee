"""Cross-entropy from hidden states at listed positions, without the [tokens, vocabulary] logits of the whole batch.

Rows go by in pieces. A piece's gradient is made in the forward pass, as soon as its logits are there, and the backward
pass only scales it: three matrix products in all, as with whole logits (Liger-Kernel, arXiv 2410.10989, section 3.2).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from keju.kernels.dispatch import as_autocast
from keju.kernels.linear_logprob import SoftmaxFigures, accumulate, checked_options
from keju.kernels.logit_chunks import Transform, Upstream, gradient, logits_at, statistics, wide

Reduction = Literal["mean", "sum"]


class _CrossEntropy(torch.autograd.Function):
    """The sum over rows; its gradients are found in the forward pass."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, target, options: dict[str, Any]):
        transform, smoothing, z_loss = options["transform"], options["label_smoothing"], options["z_loss"]
        vocab_size = weight.shape[0]
        rows, dtype = max(1, options["max_logits"] // vocab_size), wide(hidden)
        for_hidden, for_weight, for_bias = (needed and options["trained"] for needed in ctx.needs_input_grad[:3])
        d_hidden = torch.empty_like(hidden, memory_format=torch.contiguous_format) if for_hidden else None
        d_weight = torch.zeros(weight.shape, dtype=dtype, device=weight.device) if for_weight else None
        d_bias = torch.zeros(bias.shape, dtype=dtype, device=bias.device) if for_bias else None
        loss = torch.zeros((), dtype=dtype, device=hidden.device)
        for start in range(0, len(hidden), rows):
            piece = slice(start, start + rows)
            raw = F.linear(hidden[piece], weight, bias)
            found = statistics(raw, transform, with_entropy=False, with_total=smoothing > 0)
            logprob = logits_at(raw, target[piece], transform) - found.lse
            mean = found.total / vocab_size if smoothing else None
            loss += row_losses(logprob, found.lse, mean, smoothing, z_loss).sum()
            if not options["trained"]:
                continue
            ones = torch.ones_like(logprob)
            upstream = Upstream(
                (smoothing - 1) * ones,
                smoothing * ones + 2 * z_loss * found.lse,
                mean=-smoothing * ones if smoothing else None,
            )
            d_raw = gradient(raw, target[piece], found, upstream, transform)
            if for_hidden:
                torch.mm(d_raw, weight, out=d_hidden[piece])
            if for_weight:
                accumulate(d_weight, d_raw.t(), hidden[piece])
            if for_bias:
                d_bias += d_raw.sum(0)
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, d_loss):
        d_hidden, d_weight, d_bias = ctx.saved_tensors
        weight_dtype, bias_dtype = ctx.dtypes
        return (
            None if d_hidden is None else (d_hidden * d_loss).to(d_hidden.dtype),
            None if d_weight is None else torch.mul(d_weight, d_loss, out=d_weight.new_empty(0, dtype=weight_dtype)),
            None if d_bias is None else (d_bias * d_loss).to(bias_dtype),
            None,
            None,
        )


def row_losses(logprob, lse, mean, label_smoothing: float, z_loss: float) -> torch.Tensor:
    """[N] of log p(target), log sum exp and the mean logit, [N] each."""
    losses = -logprob
    if label_smoothing:
        losses = (1 - label_smoothing) * losses - label_smoothing * (mean - lse)
    return losses + z_loss * lse.square() if z_loss else losses


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    scale: float = 1.0,
    softcap: float | None = None,
    reduction: Reduction = "mean",
    recompute: bool = False,
    max_elements: int | None = None,
) -> torch.Tensor:
    """-(1 - e) log p(target) - e mean(log p) + z (log sum exp logits)^2, averaged or summed over the N rows.

    hidden [N, H], weight [V, H], target int64 [N], bias [V]; logits = softcap(scale * (hidden @ weight.T + bias)), see
    linear_logprob. e = label_smoothing (arXiv 1512.00567, section 7), z = z_loss (PaLM, arXiv 2204.02311, section 5).

    The gradients are made in the forward pass, that of the weight in float32. With `recompute` the backward pass makes
    them from logits that it computes again: a third more work, but nothing of the size of the weight is kept between
    the passes. Float32 (float64 for float64), a scalar; the mean of no rows is 0. Raises ValueError as linear_logprob
    does, and for a label_smoothing outside of [0, 1) or another reduction.
    """
    options = checked_options(hidden, weight, target, bias, max_elements, Transform(1.0, scale, softcap))
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing {label_smoothing} must be in [0, 1)")
    if reduction not in ("mean", "sum"):
        raise ValueError(f'reduction must be "mean" or "sum", not {reduction!r}')
    hidden, weight, bias = as_autocast(hidden, weight, bias)
    if recompute:
        options |= {"with_entropy": False, "with_mean": label_smoothing > 0}
        logprob, lse, _, mean = SoftmaxFigures.apply(hidden, weight, bias, target, options)
        loss = row_losses(logprob, lse, mean, label_smoothing, z_loss).sum()
    else:
        # In the forward pass of a Function gradients are always off, and needs_input_grad says nothing of no_grad.
        trained = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (hidden, weight, bias))
        options |= {"label_smoothing": label_smoothing, "z_loss": z_loss, "trained": trained}
        loss = _CrossEntropy.apply(hidden, weight, bias, target, options)
    return loss / max(1, len(hidden)) if reduction == "mean" else loss


def reference(
    hidden, weight, target, bias=None, *, label_smoothing=0.0, z_loss=0.0, scale=1.0, softcap=None, reduction="mean"
) -> torch.Tensor:
    """The same in plain torch with all logits at once."""
    logits = Transform(1.0, scale, softcap)(F.linear(hidden, weight, bias))
    loss = F.cross_entropy(logits, target, label_smoothing=label_smoothing, reduction="sum")
    loss = loss + z_loss * torch.logsumexp(logits, dim=-1).square().sum()
    return loss / max(1, len(hidden)) if reduction == "mean" else loss

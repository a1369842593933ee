"""Log-probabilities of targets from hidden states, without the [tokens, vocabulary] logits of the whole batch.

The LM head and the log-softmax run over chunks of positions; a chunk's logits are computed again in the backward pass
instead of being kept, once there is more than one chunk.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

MAX_LOGITS = 64 * 2**20  # elements of float32 logits alive at once: 256 MiB


class LinearLogprob(NamedTuple):
    """logprobs: float32 [N]; entropy: float32 [N] of the predicted distribution, or None when not asked for."""

    logprobs: torch.Tensor
    entropy: torch.Tensor | None


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
    chunk_size: int | None = None,
) -> LinearLogprob:
    """log softmax(logits / temperature)[target], logits = softcap(scale * (hidden @ weight.T + bias)).

    hidden [N, H], weight [V, H], target int64 [N], bias [V]; softcap(x) = c * tanh(x / c) as Gemma 2 has it. Softmax
    and results are float32 whatever the input. `chunk_size` positions at a time; by default as many as keep the logits
    under 256 MiB.
    """

    def logprobs_of(hidden, weight, target, bias):
        logits = F.linear(hidden, weight, bias).float()
        if scale != 1.0:
            logits = logits * scale
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        if temperature != 1.0:
            logits = logits / temperature
        # One fused pass forward and one backward, where logsumexp and gather take several each
        logprobs = -F.cross_entropy(logits, target, reduction="none")
        if not with_entropy:
            return logprobs, None
        # H = log Z - E[logit]
        return logprobs, torch.logsumexp(logits, dim=-1) - (torch.softmax(logits, dim=-1) * logits).sum(-1)

    chunk_size = chunk_size or max(1, MAX_LOGITS // weight.shape[0])
    if hidden.shape[0] <= chunk_size:
        return LinearLogprob(*logprobs_of(hidden, weight, target, bias))
    pieces = [
        checkpoint(logprobs_of, rows, weight, ids, bias, use_reentrant=False)
        for rows, ids in zip(hidden.split(chunk_size), target.split(chunk_size), strict=True)
    ]
    logprobs, entropies = zip(*pieces, strict=True)
    return LinearLogprob(torch.cat(logprobs), torch.cat(entropies) if with_entropy else None)

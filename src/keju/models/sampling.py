"""Choosing the next token: by the largest logit, or by inverse transform sampling from given uniform numbers.

The uniforms of a response are drawn from its own seed, so that a sample depends on nothing but the distribution: not on
who else is in the batch, in which order, and who has left it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BELOW_ONE = 1 - 2**-52


class Sampling(NamedTuple):
    """temperature 0: the likeliest token. top_p 1 and top_k 0 cut nothing off."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


def choose(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> Tensor:
    """logits [R, vocab], uniforms float64 [R] in [0, 1) -> ids int64 [R].

    The token whose interval of the cumulative distribution holds the uniform, after temperature, top-k and top-p in
    this order (as transformers applies them). Never a token of probability 0.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = filtered(logits.float() / sampling.temperature, sampling).softmax(dim=-1)
    cumulative = probabilities.double().cumsum(dim=-1)
    place = (uniforms.to(cumulative.device) * cumulative[:, -1]).minimum(cumulative[:, -1] * BELOW_ONE)
    # Logits of NaN find no place at all; that they are some is for the reader of the sample's log-probs to say.
    return torch.searchsorted(cumulative, place[:, None], right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def filtered(logits: Tensor, sampling: Sampling) -> Tensor:
    """Logits with -inf for what top-k and top-p cut off; the likeliest token always stays."""
    if sampling.top_k > 0:
        smallest = logits.topk(min(sampling.top_k, logits.shape[-1]), dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if sampling.top_p < 1:
        ascending, order = logits.sort(dim=-1)
        unlikely = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - sampling.top_p
        unlikely[..., -1] = False
        logits = logits.masked_fill(unlikely.scatter(-1, order, unlikely), -torch.inf)
    return logits


def uniforms_of(seed: int, prompt: int, num_responses: int, max_new_tokens: int) -> Tensor:
    """float64 [num_responses, max_new_tokens] in [0, 1) for the responses to prompt number `prompt`.

    The global random state has no part in it.
    """
    generator = torch.Generator().manual_seed((seed * 1_000_003 + prompt) % 2**63)
    return torch.rand(num_responses, max_new_tokens, generator=generator, dtype=torch.float64)

"""The clipped losses of PPO over actions (Schulman et al. 2017), token means over a mask.

Any shape goes, padded [B, T] or a flat list of actions [N]; `mask` is True on the actions that count. `num_tokens` is
the number of actions of the whole minibatch when these are a part of it: losses and figures of the parts add up then.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from keju.rl.advantages import masked_mean
from keju.rl.rewards import MAX_LOG_RATIO


class PolicyLoss(NamedTuple):
    loss: Tensor
    clip_fraction: Tensor  # share of actions whose ratio left the range and was held back
    approx_kl: Tensor  # KL(old || new) estimated by ratio - 1 - log ratio: never negative
    ratio: Tensor  # mean ratio, 1 at the first minibatch


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    cliprange: float = 0.2,
    num_tokens: float | Tensor | None = None,
) -> PolicyLoss:
    """mean of max(-A ratio, -A clip(ratio, 1 - c, 1 + c)), ratio = exp(logprobs - old_logprobs) (eq. 7).

    The log-ratio is taken in float32 and clamped to +-20: an infinite ratio would give the gradient 0 * inf = NaN even
    where the clip holds.
    """
    difference = torch.where(mask, logprobs.float() - old_logprobs.float(), 0.0)
    log_ratio = difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    free = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    with torch.no_grad():
        clip_fraction = masked_mean((clipped > free).float(), mask, num_tokens)
        approx_kl = masked_mean(torch.expm1(log_ratio) - log_ratio, mask, num_tokens)
        mean_ratio = masked_mean(ratio, mask, num_tokens)
    return PolicyLoss(masked_mean(torch.maximum(free, clipped), mask, num_tokens), clip_fraction, approx_kl, mean_ratio)


class ValueLoss(NamedTuple):
    loss: Tensor
    clip_fraction: Tensor  # share of actions where the clipped error is the larger one


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    cliprange: float = 0.2,
    num_tokens: float | Tensor | None = None,
) -> ValueLoss:
    """mean of max((V - R)^2, (clip(V, V_old +- c) - R)^2) / 2: the value, too, moves one step at a time."""
    values = values.float()
    clipped_values = torch.clamp(values, old_values - cliprange, old_values + cliprange)
    free = (values - returns).square()
    clipped = (clipped_values - returns).square()
    with torch.no_grad():
        clip_fraction = masked_mean((clipped > free).float(), mask, num_tokens)
    return ValueLoss(masked_mean(torch.maximum(free, clipped), mask, num_tokens) / 2, clip_fraction)

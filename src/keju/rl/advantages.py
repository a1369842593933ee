"""Advantages of actions: GAE, whitening, and how well the critic explains the returns.

Shapes: B responses padded on the right to T actions; `mask` [B, T] is True on the actions of a response. `values[b, t]`
is the critic's value of the state in which action t is chosen: it is read at the token *before* the action.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from keju.kernels import gae as kernel
from keju.rl.rewards import check_prefix_mask


class Advantages(NamedTuple):
    advantages: Tensor  # [B, T], zero outside the mask
    returns: Tensor  # [B, T] = advantages + values, zero outside the mask


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95) -> Advantages:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) over the actions of each response.

    delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lam A_{t+1}; the value after the last action is 0 (a
    response that was cut off counts as ended, too). Whatever stands outside the mask, NaN included, never enters.
    """
    check_prefix_mask(mask)
    packed = kernel.gae(rewards[mask].float(), values[mask].float(), mask.sum(1), gamma, lam)
    return Advantages(*(torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, part) for part in packed))


def masked_mean(x: Tensor, mask: Tensor, num_tokens: float | Tensor | None = None) -> Tensor:
    """Sum of x over the mask, divided by `num_tokens` (default: the size of the mask).

    With the number of tokens of a whole minibatch given, the means of its parts add up to its mean.
    """
    num_tokens = mask.sum() if num_tokens is None else num_tokens
    return torch.where(mask, x, 0.0).sum() / num_tokens


def whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """(x - mean) / std over the mask only, zero outside; without `shift_mean` the mean stays. Variance with n - 1."""
    count = mask.sum()
    mean = torch.where(mask, x, 0.0).sum() / count
    variance = torch.where(mask, (x - mean).square(), 0.0).sum() / (count - 1).clamp(min=1)
    whitened = (x - mean) * torch.rsqrt(variance + 1e-8)
    return torch.where(mask, whitened if shift_mean else whitened + mean, 0.0)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over the mask: 1 perfect, 0 no better than a constant, NaN undefined."""
    variance = returns[mask].var(unbiased=False)
    if float(variance) == 0:
        return float("nan")
    return float(1 - (returns - values)[mask].var(unbiased=False) / variance)

"""Generalised advantage estimation (Schulman et al. 2016, eq. 16) over packed responses, as a scan from their ends."""

from __future__ import annotations

from typing import NamedTuple

import torch

from keju.kernels.dispatch import check_floating, check_shape, compute_dtype, jit, launch, tl, triton, use_triton

BLOCK = 1024  # actions that a program scans at once


class Advantages(NamedTuple):
    """float [N] each; returns = advantages + values."""

    advantages: torch.Tensor
    returns: torch.Tensor


@jit
def _then(decay, value, next_decay, next_value):
    """Two steps of x -> value + decay x, the later action (which comes first in a scan from the end) inside."""
    return decay * next_decay, next_value + next_decay * value


@jit
def _gae(rewards, values, ends, advantages, returns, gamma, decay, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    response = tl.program_id(0)
    begin = tl.load(ends + response - 1, mask=response > 0, other=0)
    end = tl.load(ends + response)
    carry = tl.zeros([1], DTYPE)
    for number in range(0, tl.cdiv(end - begin, BLOCK)):
        # Blocks from the end on; a block beyond the beginning holds nothing that counts.
        index = end - (number + 1) * BLOCK + tl.arange(0, BLOCK)
        inside = index >= begin
        value = tl.load(values + index, mask=inside, other=0.0).to(DTYPE)
        following = tl.load(values + index + 1, mask=inside & (index + 1 < end), other=0.0).to(DTYPE)
        delta = tl.load(rewards + index, mask=inside, other=0.0).to(DTYPE) + gamma * following - value
        factors = tl.zeros([BLOCK], DTYPE) + decay
        factor, advantage = tl.associative_scan((factors, delta), 0, _then, reverse=True)
        advantage += factor * carry
        tl.store(advantages + index, advantage, mask=inside)
        tl.store(returns + index, advantage + value, mask=inside)
        # What the first action of this block hands to the block before it.
        carry = tl.sum(tl.where(tl.arange(0, BLOCK) == 0, advantage, 0.0), axis=0, keep_dims=True)


@torch.no_grad()
def gae(
    rewards: torch.Tensor, values: torch.Tensor, lengths: torch.Tensor, gamma: float = 1.0, lam: float = 0.95
) -> Advantages:
    """delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lam A_{t+1}; V and A after the last action are 0.

    rewards, values: [N], the actions of all responses one after another; values[t] is the critic's value of the state
    in which action t is chosen. lengths int64 [R], whose sum is N (0 = a response without actions). Computed in float32
    at least; no gradient flows. Raises ValueError for other shapes.
    """
    check_floating(rewards=rewards, values=values)
    if rewards.dim() != 1:
        raise ValueError(f"rewards must be [N], not {list(rewards.shape)}")
    check_shape("values", values, rewards.shape)
    if lengths.dim() != 1 or lengths.dtype != torch.int64 or lengths.device != rewards.device:
        raise ValueError(f"lengths must be int64 [R] on {rewards.device}, not {lengths.dtype} {list(lengths.shape)}")
    ends = lengths.cumsum(0)
    total, shortest = torch.stack([lengths.sum(), lengths.min() if len(lengths) else lengths.sum()]).tolist()
    if total != len(rewards) or shortest < 0:
        raise ValueError(f"lengths add up to {total}, but there are {len(rewards)} rewards")
    wide = torch.promote_types(torch.promote_types(rewards.dtype, values.dtype), torch.float32)
    if not use_triton(rewards):
        return reference(rewards.to(wide), values.to(wide), lengths, gamma, lam)
    advantages, returns = rewards.new_empty(total, dtype=wide), rewards.new_empty(total, dtype=wide)
    launch(
        _gae,
        (len(lengths),),
        *(rewards.contiguous(), values.contiguous(), ends, advantages, returns, gamma, gamma * lam),
        DTYPE=compute_dtype(advantages),
        BLOCK=min(BLOCK, triton.next_power_of_2(max(total, 1))),
        num_warps=4,
    )
    return Advantages(advantages, returns)


def reference(rewards, values, lengths, gamma: float = 1.0, lam: float = 0.95) -> Advantages:
    """The same in plain torch, by doubling: after k rounds each action has gathered 2^k steps (Hillis and Steele)."""
    is_last = torch.zeros_like(rewards, dtype=torch.bool)
    is_last[lengths.cumsum(0)[lengths > 0] - 1] = True
    factor = torch.where(is_last, 0.0, gamma * lam).to(rewards.dtype)
    following = torch.where(is_last, 0.0, values.roll(-1))
    advantages = rewards + gamma * following - values
    step, longest = 1, int(lengths.max()) if len(lengths) else 0
    while step < longest:
        # Where a response has ended within the reach the factor is 0 already.
        advantages[:-step] += factor[:-step] * advantages[step:].clone()
        factor[:-step] *= factor[step:].clone()
        step *= 2
    return Advantages(advantages, advantages + values)

"""Sums over all processes of a run: statistics of a rollout are those of the whole one, not of a process's part."""

import torch
from torch import Tensor


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum of `x` over all processes; `x` itself in a run of one."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return x
    total = x.clone()
    torch.distributed.all_reduce(total)
    return total

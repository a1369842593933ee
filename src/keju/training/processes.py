"""What the processes of a run share: which part of the work is whose, and sums over all of them.

A launcher (torchrun, deepspeed) numbers its processes in the environment; later they find each other and are a group.
Work is shared out in the group: processes that have not found each other do all of it, each for itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Part, Name = TypeVar("Part"), TypeVar("Name")


def is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def num_processes() -> int:
    return torch.distributed.get_world_size() if is_distributed() else 1


def process_index() -> int:
    return torch.distributed.get_rank() if is_distributed() else 0


def num_launched() -> int:
    """How many processes the launcher has started, whether they have found each other yet or not."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this process is the one that writes and speaks, of those that have been launched."""
    return process_index() == 0 if is_distributed() else int(os.environ.get("RANK", "0")) == 0


def wait_for_all() -> None:
    if is_distributed():
        torch.distributed.barrier()


def sum_over_processes(x: Tensor) -> Tensor:
    """The sum of `x` over all processes; `x` itself in a run of one."""
    if not is_distributed():
        return x
    total = x.clone()
    torch.distributed.all_reduce(total)
    return total


def sum_figures(figures: Mapping[Name, float], device: torch.device) -> dict[Name, float]:
    """Figures of this process's part, summed over all processes; `device`: where the process group sums."""
    if not is_distributed():
        return dict(figures)
    numbers = torch.tensor(list(figures.values()), dtype=torch.float64, device=device)
    return dict(zip(figures, sum_over_processes(numbers).tolist(), strict=True))


def own_parts(parts: Sequence[Part]) -> list[tuple[Part, bool]]:
    """The parts of this process, each with whether it counts.

    Every process gets equally many, since under ZeRO-3 each pass of a model waits for all of them: what is missing is
    filled up with a part that does not count. `parts` must be the same everywhere.
    """
    count, index = num_processes(), process_index()
    numbers = range(index, -(-len(parts) // count) * count, count)
    return [(parts[min(number, len(parts) - 1)], number < len(parts)) for number in numbers]


def start_deepspeed() -> None:
    """Makes the process group known to DeepSpeed, which must know it when ZeRO-3 cuts weights up while they load."""
    import deepspeed

    deepspeed.init_distributed()

"""Which trees make up each forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler

from keju.trees.packing import Packs, pack_arrays


class TreeBatchSampler(Sampler[list[int]]):
    """Packs of tree indices for one process: at most `token_budget` tokens and `max_trees` trees each.

    Every epoch shuffles which trees of equal length share a pack and the order of the packs, from `seed` and the epoch
    alone. The number of packs depends on the lengths only, so it is the same in every epoch and on every process.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        token_budget: int,
        *,
        max_trees: int | None = None,
        seed: int = 0,
        num_processes: int = 1,
        process_index: int = 0,
    ) -> None:
        self.lengths = np.asarray(lengths)
        self.token_budget, self.max_trees = token_budget, max_trees
        self.seed = seed
        self.num_processes, self.process_index = num_processes, process_index
        self.epoch = 0
        self.num_packs = len(self._all_packs())

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_packs // self.num_processes

    def __iter__(self) -> Iterator[list[int]]:
        packs = self._all_packs()
        return iter(packs[self.process_index :: self.num_processes])

    def _all_packs(self) -> Packs:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).numpy()
        packs = pack_arrays(self.lengths[order], self.token_budget, self.max_trees)
        packs = packs.split_to_multiple(self.num_processes)
        packs.members = order[packs.members]
        return packs.ordered(torch.randperm(len(packs), generator=generator).numpy())

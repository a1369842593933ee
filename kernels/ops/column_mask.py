"""The mask of packed rows: key k is visible to the queries visible_from[k] <= q < visible_until[k].

Two integers a key (FlashMask, arXiv 2410.01359) cover causal packing, trees with a shared prefix, and prefix-LM
contexts. From them follows which blocks of keys a block of queries need not look at.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch

CHUNK = 128
# Keys are gathered where that leaves out at least this share of the range that holds them.
GATHER_SHARE = 0.2


class Blocks(NamedTuple):
    """For each of n blocks, which of the m blocks of the other side it meets; on the device of the mask.

    index: int32 [n, m], blocks of which a part is visible first, then those that are visible whole, then the others;
    num_partial, num_met: int32 [n], how many of the first kind, and of the first two.
    """

    index: torch.Tensor
    num_partial: torch.Tensor
    num_met: torch.Tensor


@dataclass(frozen=True, eq=False)
class ColumnMask:
    """The mask of one packed row; one object serves all layers, so that its plans are made once a forward pass.

    visible_from, visible_until: int64 [T], on any device.
    """

    visible_from: torch.Tensor
    visible_until: torch.Tensor
    _blocks: dict[tuple[int, int], tuple[Blocks, Blocks]] = field(default_factory=dict, init=False, repr=False)

    def blocks(self, block_q: int, block_k: int) -> tuple[Blocks, Blocks]:
        """Blocks of keys that each block of queries meets, and blocks of queries that each block of keys meets.

        By the least and greatest ends of the intervals in a block of keys (FlashMask, section 4): never too few.
        """
        if (block_q, block_k) not in self._blocks:
            length, device = self.visible_from.shape[0], self.visible_from.device
            first = torch.arange(0, length, block_q, device=device)
            beyond = (first + block_q).clamp(max=length)
            # Keys beyond the end are visible to nobody, so that no block with such keys counts as whole.
            padding = -length % block_k
            begin = torch.nn.functional.pad(self.visible_from, (0, padding), value=length).view(-1, block_k)
            until = torch.nn.functional.pad(self.visible_until, (0, padding), value=0).view(-1, block_k)
            met = (begin.amin(1) < beyond[:, None]) & (until.amax(1) > first[:, None])
            whole = (begin.amax(1) <= first[:, None]) & (until.amin(1) >= beyond[:, None])
            self._blocks[block_q, block_k] = _ordered(met, whole), _ordered(met.t(), whole.t())
        return self._blocks[block_q, block_k]

    @cached_property
    def chunks(self) -> list[tuple[slice, slice | torch.Tensor, torch.Tensor]]:
        """(queries, keys, bool mask [queries, keys]) for each chunk of queries. keys is the smallest range that holds
        every key visible to one of them; or the indices of those keys, int64, if it holds many others."""
        begin, end = self.visible_from, self.visible_until
        length = begin.shape[0]
        if not length:
            return []
        query = torch.arange(length, device=begin.device)
        starts = range(0, length, CHUNK)
        # Which keys does any query of the chunk see? [chunks, T]; First, last and number: one device transfer.
        lower = torch.tensor(list(starts), device=begin.device)[:, None]
        upper = (lower + CHUNK).clamp(max=length)
        touched = torch.maximum(begin, lower) < torch.minimum(end, upper)
        first, last = touched.int().argmax(1), length - touched.flip(1).int().argmax(1)
        plan = []
        for number, (low, high, count) in enumerate(torch.stack([first, last, touched.sum(1)], dim=1).tolist()):
            queries = slice(starts[number], min(starts[number] + CHUNK, length))
            keys: slice | torch.Tensor = slice(low, high)
            if count < (1 - GATHER_SHARE) * (high - low):
                keys = touched[number].nonzero().squeeze(1)
            rows = query[queries, None]
            plan.append((queries, keys, (begin[None, keys] <= rows) & (rows < end[None, keys])))
        return plan


def _ordered(met: torch.Tensor, whole: torch.Tensor) -> Blocks:
    met = met | whole
    rank = torch.where(whole, 1, torch.where(met, 0, 2))
    index = rank.sort(dim=1, stable=True).indices.int().contiguous()
    return Blocks(index, (met & ~whole).sum(1).int(), met.sum(1).int())

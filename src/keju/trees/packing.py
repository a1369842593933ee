"""Bin packing: which trees share a row of a fixed token budget."""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from keju.errors import UserError


@dataclass
class Packs(Sequence):
    """Packs as arrays: pack p holds members[starts[p] : ends[p]]. Like a list of lists, in a few bytes an item."""

    members: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, number):
        if isinstance(number, slice):
            return Packs(self.members, self.starts[number], self.ends[number])
        return self.members[self.starts[number] : self.ends[number]].tolist()

    def ordered(self, order: np.ndarray) -> Packs:
        """The packs whose numbers `order` gives."""
        return Packs(self.members, self.starts[order], self.ends[order])

    def split_to_multiple(self, multiple: int) -> Packs:
        """Splits the fullest packs until their number is a multiple of `multiple`, so that every process gets as many.

        Raises UserError when there are too few items for that.
        """
        starts, ends = list(self.starts), list(self.ends)
        sizes = self.ends - self.starts
        while len(starts) % multiple:
            largest = int(np.argmax(sizes))
            if sizes[largest] < 2:
                raise UserError(
                    f"{len(starts)} packs cannot be shared by {multiple} processes: too few records for so many "
                    "processes"
                )
            middle = starts[largest] + sizes[largest] // 2
            starts.append(middle)
            ends.append(ends[largest])
            ends[largest] = middle
            sizes = np.append(sizes, ends[-1] - middle)
            sizes[largest] //= 2
        return Packs(self.members, np.asarray(starts), np.asarray(ends))


def pack(lengths: Sequence[int] | np.ndarray, budget: int, max_items: int | None = None) -> list[list[int]]:
    """`pack_arrays` as lists."""
    return list(pack_arrays(lengths, budget, max_items))


def pack_arrays(lengths: Sequence[int] | np.ndarray, budget: int, max_items: int | None = None) -> Packs:
    """Groups the indices of `lengths` into packs of at most `budget` tokens (and at most `max_items` items).

    First-fit decreasing, with the fullest pack that fits in place of the oldest: the same bound of 11/9 of the optimal
    number of packs (Johnson 1974), found by bisection instead of a scan of all open packs. Equal input gives equal
    output. Each pack lists its items in input order. Raises UserError for an item longer than the budget.
    """
    lengths = np.asarray(lengths, np.int64)
    if len(lengths) and (longest := int(lengths.max())) > budget:
        raise UserError(
            f"an item of {longest} tokens does not fit {budget}; raise it or lower --max_length", option="token_budget"
        )
    frees: list[int] = []  # what open packs have left, each number once, sorted
    open_packs: dict[int, list[int]] = {}  # free tokens -> a heap of the packs that have so many left
    counts: list[int] = []
    pack_of = np.empty(len(lengths), np.int64)
    for index in np.argsort(-lengths, kind="stable"):
        length = int(lengths[index])
        position = bisect.bisect_left(frees, length)
        if position == len(frees):
            free, number = budget, len(counts)
            counts.append(0)
        else:
            free = frees[position]
            number = heapq.heappop(open_packs[free])
            if not open_packs[free]:
                del open_packs[free], frees[position]
        pack_of[index] = number
        counts[number] += 1
        if max_items is None or counts[number] < max_items:
            free -= length
            if free not in open_packs:
                open_packs[free] = []
                bisect.insort(frees, free)
            heapq.heappush(open_packs[free], number)
    ends = np.cumsum(np.asarray(counts, np.int64))
    return Packs(np.argsort(pack_of, kind="stable"), ends - np.asarray(counts, np.int64), ends)

"""Bin packing: which trees share a row of a fixed token budget."""

from __future__ import annotations

import bisect
from collections.abc import Sequence


def pack(lengths: Sequence[int], budget: int, max_items: int | None = None) -> list[list[int]]:
    """Groups the indices of `lengths` into packs of at most `budget` tokens (and at most `max_items` items).

    First-fit decreasing, with the fullest pack that fits in place of the oldest: the same bound of 11/9 of the optimal
    number of packs (Johnson 1974), found by bisection instead of a scan of all open packs. Equal input gives equal
    output. Each pack lists its items in input order. Raises ValueError for an item longer than the budget.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    open_packs: list[tuple[int, int]] = []  # (free tokens, pack number), sorted
    packs: list[list[int]] = []
    for index in order:
        length = lengths[index]
        if length > budget:
            raise ValueError(
                f"an item of {length} tokens does not fit --token_budget {budget}; raise it or lower --max_length"
            )
        position = bisect.bisect_left(open_packs, (length, -1))
        if position == len(open_packs):
            free, number = budget, len(packs)
            packs.append([])
        else:
            free, number = open_packs.pop(position)
        packs[number].append(index)
        if max_items is None or len(packs[number]) < max_items:
            bisect.insort(open_packs, (free - length, number))
    return [sorted(members) for members in packs]


def split_to_multiple(packs: list[list[int]], multiple: int) -> list[list[int]]:
    """Splits the fullest packs until their number is a multiple of `multiple`, so that every process gets as many.

    Raises ValueError when there are too few items for that.
    """
    packs = [list(members) for members in packs]
    while len(packs) % multiple:
        largest = max(range(len(packs)), key=lambda number: len(packs[number]))
        members = packs[largest]
        if len(members) < 2:
            raise ValueError(
                f"{len(packs)} packs cannot be shared by {multiple} processes: too few records for so many processes"
            )
        half = len(members) // 2
        packs[largest] = members[:half]
        packs.append(members[half:])
    return packs

"""Trees, and other items, that are made when they are asked for: sequences that hold numbers instead of what they give.

Each behaves like the list of its items, negative indices and slices (which are lists) included.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from keju.trees.segment import Segment

Item = TypeVar("Item")


class LazySequence(Sequence[Item]):
    @abstractmethod
    def item(self, index: int) -> Item:
        """The item of 0 <= index < len(self)."""

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self.item(number) for number in range(*index.indices(len(self)))]
        index = int(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        return self.item(index % len(self))


class LazyTrees(LazySequence[Segment]):
    """lengths: integers [trees], tokens of each tree, in memory."""

    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)


def lengths_of(trees: Sequence[Segment]) -> np.ndarray:
    """Tokens of each tree; lazy ones are not made for it."""
    if isinstance(trees, LazyTrees):
        return trees.lengths
    return np.fromiter((tree.num_tokens for tree in trees), np.int64, len(trees))


class RootTokens(LazySequence[list[int]]):
    """The token ids of each tree's root: of prompts, all there is."""

    def __init__(self, trees: Sequence[Segment]) -> None:
        self._trees = trees

    def __len__(self) -> int:
        return len(self._trees)

    def item(self, index: int) -> list[int]:
        return list(self._trees[index].tokens)


class Chosen(LazySequence[Item]):
    """The items of these indices, in this order."""

    def __init__(self, items: Sequence[Item], indices: Sequence[int] | np.ndarray) -> None:
        self._items, self._indices = items, indices

    def __len__(self) -> int:
        return len(self._indices)

    def item(self, index: int) -> Item:
        return self._items[self._indices[index]]


class ChosenTrees(LazyTrees):
    """As Chosen, of trees."""

    def __init__(self, trees: Sequence[Segment], indices: Sequence[int] | np.ndarray) -> None:
        self._trees, self._indices = trees, indices
        self.lengths = lengths_of(trees)[np.asarray(indices, np.int64)]

    def item(self, index: int) -> Segment:
        return self._trees[self._indices[index]]


class JoinedTrees(LazyTrees):
    """The trees of all parts, one part after the other."""

    def __init__(self, parts: Sequence[Sequence[Segment]]) -> None:
        self._parts = list(parts)
        self._ends = np.cumsum([len(part) for part in parts])
        self.lengths = np.concatenate([lengths_of(part) for part in parts])

    def item(self, index: int) -> Segment:
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._parts[number][index - int(self._ends[number])]  # from its end

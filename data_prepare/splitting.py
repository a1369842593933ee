"""Splits that share no group, and finding the texts that other texts hold."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence


def group_items(keys: Sequence[Iterable[Hashable]]) -> list[int]:
    """One group number an item: items that share a key, directly or through other items, share the group."""
    parent = list(range(len(keys)))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    first_with: dict[Hashable, int] = {}
    for item, item_keys in enumerate(keys):
        for key in item_keys:
            parent[root(item)] = root(first_with.setdefault(key, item))
    return [root(item) for item in range(len(keys))]


def split_groups(groups: Sequence[int], sizes: Mapping[str, int], rest: str, seed: int) -> list[str]:
    """One split name an item. Whole groups, in an order drawn by `seed`, fill each split of `sizes` to its number of
    items (a group that does not fit is left for a later split); all others go to the split `rest`."""
    members: dict[int, list[int]] = defaultdict(list)
    for item, group in enumerate(groups):
        members[group].append(item)
    order = list(members)
    random.Random(f"split {seed}").shuffle(order)
    splits = [rest] * len(groups)
    for name, size in sizes.items():
        left, room = [], size
        for group in order:
            if len(members[group]) > room:
                left.append(group)
                continue
            room -= len(members[group])
            for item in members[group]:
                splits[item] = name
        order = left
    assert_no_shared_group(groups, splits)
    return splits


def assert_no_shared_group(groups: Sequence[int], splits: Sequence[str]) -> None:
    """Raises AssertionError if two items of one group are in different splits."""
    split_of: dict[int, str] = {}
    for group, split in zip(groups, splits, strict=True):
        found = split_of.setdefault(group, split)
        assert found == split, f"group {group} is in the splits {found} and {split}"


def finder(patterns: Iterable[str]) -> Callable[[str], set[str]]:
    """A function that returns which of the patterns occur in a text, as substrings; overlapping ones too.

    Patterns are indexed by their beginning (as long as the shortest pattern), so that the time for a text hardly grows
    with the number of patterns.
    """
    patterns = set(patterns)
    width = min(map(len, patterns), default=1)
    assert width > 0, "an empty pattern occurs everywhere"
    beginning_with: dict[str, list[str]] = defaultdict(list)
    for pattern in patterns:
        beginning_with[pattern[:width]].append(pattern)

    def found_in(text: str) -> set[str]:
        return {
            pattern
            for start in range(len(text) - width + 1)
            for pattern in beginning_with.get(text[start : start + width], ())
            if text.startswith(pattern, start)
        }

    return found_in

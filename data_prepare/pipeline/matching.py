"""Duplicates among all items, and texts that two splits have: found by sorting hashes, one bucket at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from keju.data_prepare.pipeline.signatures import SPLIT_SHIFT, TEXT

KEPT_APART = 8  # texts of one band that are unlike each other, with which each further one is compared
EDGE = np.dtype([("one", "<u8"), ("other", "<u8"), ("equal", "?")])
REMOVED = np.dtype([("key", "<u8"), ("kept", "<u8"), ("equal", "?")])


def runs(hashes: np.ndarray) -> Iterator[tuple[int, int]]:
    """(start, end) of every run of two or more equal values of a sorted array."""
    starts = np.flatnonzero(np.concatenate([[True], hashes[1:] != hashes[:-1]]))
    ends = np.append(starts[1:], len(hashes))
    long = ends - starts > 1
    yield from zip(starts[long].tolist(), ends[long].tolist(), strict=True)


def duplicate_pairs(entries: np.ndarray, are_alike: Callable[[int, int], bool]) -> np.ndarray:
    """Pairs of items that say the same, [n] of EDGE.

    entries: of BAND, all that share a bucket. are_alike: compares the texts of two keys, which is asked of those alone
    that meet in a band without being equal.
    """
    found: list[tuple[int, int, bool]] = []
    if not len(entries):
        return np.empty(0, EDGE)
    entries = entries[np.lexsort((entries["key"], entries["hash"]))]
    for start, end in runs(entries["hash"]):
        exact = entries["exact"][start:end].tolist()
        first_with: dict[int, int] = {}
        apart: list[int] = []
        for key, text in zip(entries["key"][start:end].tolist(), exact, strict=True):
            if text in first_with:
                if first_with[text] != key:
                    found.append((first_with[text], key, True))
                continue
            first_with[text] = key
            like = next((other for other in apart if are_alike(other, key)), None)
            if like is not None:
                found.append((like, key, False))
            elif len(apart) < KEPT_APART:
                apart.append(key)
    return np.unique(np.array(found, EDGE))


def to_remove(edges: np.ndarray) -> np.ndarray:
    """All items but the one with the smallest key of every set that pairs connect, [n] of REMOVED, sorted by key.

    edges: of EDGE.
    """
    keys, ends = np.unique(np.concatenate([edges["one"], edges["other"]]), return_inverse=True)
    if not len(keys):
        return np.empty(0, REMOVED)
    one, other = ends[: len(edges)], ends[len(edges) :]
    graph = coo_array((np.ones(len(edges), np.int8), (one, other)), shape=(len(keys), len(keys)))
    _, labels = connected_components(graph, directed=False)
    _, first = np.unique(labels, return_index=True)  # keys are sorted, so that the first is the smallest
    kept = first[labels]
    equal = np.zeros(len(keys), bool)
    equal[other[edges["equal"]]] = True
    equal[one[edges["equal"]]] = True
    removed = np.empty(len(keys), REMOVED)
    removed["key"], removed["kept"], removed["equal"] = keys, keys[kept], equal
    return removed[kept != np.arange(len(keys))]


def in_two_splits(entries: np.ndarray) -> np.ndarray:
    """Entries (of TEXT) whose text is in a split that comes before theirs in SPLITS as well, sorted by key."""
    if not len(entries):
        return np.empty(0, TEXT)
    entries = entries[np.lexsort((entries["key"], entries["hash"]))]
    splits = entries["key"] >> np.uint64(SPLIT_SHIFT)
    starts = np.concatenate([[True], entries["hash"][1:] != entries["hash"][:-1]])
    first = np.maximum.accumulate(np.where(starts, np.arange(len(entries)), 0))
    return np.sort(entries[splits > splits[first]], order=("key", "text"))

"""Trees as flat arrays and back, to the last field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from keju.trees.segment import Segment

# Columns of `ends`: how many of each there are up to the end of a tree.
SEGMENTS, TOKENS, FLAG_BYTES, VALUES, TOKEN_VALUE_ROWS, TOKEN_VALUES = range(6)
NOT_TRAINED, TRAINED, BY_TOKEN, BIDIRECTIONAL = 0, 1, 2, 4  # bits of a segment's `kind`
# name -> (dtype, width, which column of `ends` says where a tree's part of it is)
ARRAYS: dict[str, tuple[str, int | None, int]] = {
    "segments": ("<u4", 5, SEGMENTS),  # tokens, branches, kind, values, token value rows; in preorder
    "tokens": ("<u4", None, TOKENS),
    "flags": ("u1", None, FLAG_BYTES),  # bits, first bit highest, of segments that are trained BY_TOKEN
    "value_names": ("<u2", None, VALUES),
    "values": ("<f8", None, VALUES),
    "token_value_names": ("<u2", None, TOKEN_VALUE_ROWS),
    "token_values": ("<f8", None, TOKEN_VALUES),
}


@dataclass
class TreeColumns:
    """Trees laid end to end. ends: int64 [trees, 6]; arrays: see ARRAYS; names: of values, by their number."""

    ends: np.ndarray
    arrays: dict[str, np.ndarray]
    names: list[str]

    def __len__(self) -> int:
        return len(self.ends)

    def head(self, count: int) -> TreeColumns:
        """The first `count` trees."""
        ends = self.ends[:count]
        last = ends[-1] if len(ends) else np.zeros(6, np.int64)
        arrays = {name: self.arrays[name][: last[column]] for name, (_, _, column) in ARRAYS.items()}
        return TreeColumns(ends, arrays, self.names)


def flatten(trees: Sequence[Segment]) -> TreeColumns:
    """Raises ValueError for flags or token values of another length than their tokens."""
    numbers: dict[str, int] = {}
    ends: list[tuple[int, ...]] = []
    rows: dict[str, list[Any]] = {name: [] for name in ARRAYS}
    num_tokens = num_flags = num_token_values = 0
    for tree in trees:
        for segment in tree.preorder():
            size, kind = len(segment.tokens), BIDIRECTIONAL if segment.bidirectional else 0
            if isinstance(segment.trained, bool):
                kind |= TRAINED if segment.trained else NOT_TRAINED
            else:
                kind |= BY_TOKEN
                rows["flags"].append(np.packbits(_of_size(segment.trained, size, "flags", bool)))
                num_flags += len(rows["flags"][-1])
            rows["segments"].append((size, len(segment.branches), kind, len(segment.values), len(segment.token_values)))
            rows["tokens"].append(segment.tokens)
            num_tokens += size
            for name, value in segment.values.items():
                rows["value_names"].append(numbers.setdefault(name, len(numbers)))
                rows["values"].append(value)
            for name, values in segment.token_values.items():
                rows["token_value_names"].append(numbers.setdefault(name, len(numbers)))
                rows["token_values"].append(_of_size(values, size, f"token values {name!r}", np.float64))
                num_token_values += size
        ends.append(
            (
                *(len(rows["segments"]), num_tokens, num_flags),
                *(len(rows["values"]), len(rows["token_value_names"]), num_token_values),
            )
        )
    rows["tokens"] = np.fromiter(chain.from_iterable(rows["tokens"]), "<u4", num_tokens)
    for name in ("flags", "token_values"):
        rows[name] = np.concatenate([np.zeros(0, ARRAYS[name][0]), *rows[name]])
    arrays = {
        name: np.asarray(rows[name], dtype).reshape(-1, *((width,) if width else ()))
        for name, (dtype, width, _) in ARRAYS.items()
    }
    return TreeColumns(np.asarray(ends, np.int64).reshape(-1, 6), arrays, list(numbers))


def _of_size(values: Sequence[Any], size: int, what: str, dtype: type) -> np.ndarray:
    if len(values) != size:
        raise ValueError(f"a segment of {size} tokens has {len(values)} {what}")
    return np.asarray(values, dtype)


def restore(parts: Mapping[str, np.ndarray], names: Sequence[str]) -> Segment:
    """The tree whose parts of the arrays (see ARRAYS) these are."""
    lists = {name: iter(parts[name].tolist()) for name in ("segments", "value_names", "values", "token_value_names")}
    tokens, token_values, flags = parts["tokens"].tolist(), parts["token_values"].tolist(), parts["flags"]
    place = flag_place = value_place = 0

    def segment() -> Segment:
        nonlocal place, flag_place, value_place
        size, num_branches, kind, num_values, num_token_values = next(lists["segments"])
        trained: bool | list[bool] = bool(kind & TRAINED)
        if kind & BY_TOKEN:
            num_bytes = -(-size // 8)
            trained = np.unpackbits(flags[flag_place : flag_place + num_bytes], count=size).astype(bool).tolist()
            flag_place += num_bytes
        own = tokens[place : place + size]
        place += size
        values = {names[next(lists["value_names"])]: next(lists["values"]) for _ in range(num_values)}
        by_token = {}
        for _ in range(num_token_values):
            by_token[names[next(lists["token_value_names"])]] = token_values[value_place : value_place + size]
            value_place += size
        return Segment(
            own,
            trained=trained,
            branches=[segment() for _ in range(num_branches)],
            values=values,
            token_values=by_token,
            bidirectional=bool(kind & BIDIRECTIONAL),
        )

    return segment()

"""Items between two stages: a table of what most stages need to know of them, and lines that are read one by one."""

from __future__ import annotations

import contextlib
import functools
import mmap
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import orjson

from keju.data_prepare.corpus import Item
from keju.data_prepare.pipeline.plan import SPLITS
from keju.records.writing import whole_file

# number: the portion in the upper 32 bits, the place in the portion in the lower ones. split: its place in SPLITS.
# task: a number that is the same for items that exchange answers, 0 for those that take none.
# near: the same for items of a split that exchange near answers, 0 for those without keys.
# order: where the item stands among all of its split.
ENTRY = np.dtype([("number", "<u8"), ("split", "u1"), ("task", "<u8"), ("near", "<u8"), ("order", "<u8")])

REMEMBERED = 1024  # items that are likely to be asked for again: those that follow in the order drawn


def line_of(item: Item, row: dict[str, Any] | None = None) -> bytes:
    """row: instead of the item's own."""
    fields = (item.row if row is None else row, item.where, item.group, item.source, item.task, item.keys, item.content)
    # Copied: what orjson returns keeps the 4 KB that it was written in for as long as it lives.
    return bytes(memoryview(orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)))


class ItemWriter:
    """Writes items in slices that follow each other; the file is whole or not there.

    Beside the lines at `path` are tables of .npy: .entries, .begins (of lines, in bytes), .slices (the number of the
    first line of each).
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack = contextlib.ExitStack()
        self._entries: list[np.ndarray] = []
        self._sizes: list[int] = []
        self._first_lines: list[int] = []

    def __enter__(self) -> ItemWriter:
        aside = self._stack.enter_context(whole_file(self._path))
        self._file = self._stack.enter_context(aside.open("wb"))
        return self

    def add_slice(self) -> None:
        """What is written from now on is in another slice."""
        self._first_lines.append(len(self._sizes))

    def write(self, entries: np.ndarray, lines: Iterable[bytes]) -> None:
        """entries: [n] of ENTRY, in the order of the lines."""
        self._entries.append(entries)
        self._sizes += map(self._file.write, lines)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType) -> None:
        self._stack.__exit__(kind, error, trace)
        if error is not None:
            return
        entries = np.concatenate([np.empty(0, ENTRY), *self._entries])
        assert len(entries) == len(self._sizes), "a line has no entry, or an entry no line"
        begins = np.concatenate([[0], np.cumsum(self._sizes, dtype=np.int64)]).astype(np.int64)
        slices = np.array([*self._first_lines, len(self._sizes)], np.int64)
        for name, table in (("entries", entries), ("begins", begins), ("slices", slices)):
            save(Path(f"{self._path}.{name}"), table)


def places_of(numbers: np.ndarray, count: int) -> list[np.ndarray]:
    """Where each of the numbers from 0 to count - 1 is, in ascending order."""
    order = np.argsort(numbers, kind="stable")
    return np.split(order, np.searchsorted(numbers[order], np.arange(1, count, dtype=numbers.dtype)))


def save(path: Path, array: np.ndarray) -> None:
    """An array as a file that is whole or not there."""
    with whole_file(path) as aside, aside.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def load(path: Path) -> np.ndarray:
    """An array of `save`, mapped into memory."""
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))  # of the plain class, whose items come faster


class ItemFile:
    """Items of a file of `ItemWriter`, read where they are asked for."""

    def __init__(self, path: Path) -> None:
        self.entries = load(Path(f"{path}.entries"))
        self._begins = load(Path(f"{path}.begins"))
        self._first_lines = load(Path(f"{path}.slices"))
        with path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if len(self) else b""

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Item:
        row, where, group, source, task, keys, content = orjson.loads(self.line(index))
        return Item(row, where, group, source, task, tuple(keys), content)

    def line(self, index: int) -> bytes:
        return self._bytes[self._begins[index] : self._begins[index + 1]]

    def split(self, index: int) -> str:
        return SPLITS[self.entries["split"][index]]

    def slice(self, number: int) -> slice:
        """Which items are in the slice."""
        return slice(int(self._first_lines[number]), int(self._first_lines[number + 1]))


class ItemsOfSlice:
    """A slice of each of several files together, in the order of their entries."""

    def __init__(self, files: Sequence[ItemFile], number: int, order: Sequence[str]) -> None:
        """order: fields of ENTRY, the first of which decides."""
        slices = [file.slice(number) for file in files]
        parts = [file.entries[part] for file, part in zip(files, slices, strict=True)]
        entries = np.concatenate([np.empty(0, ENTRY), *parts])
        file = np.repeat(np.arange(len(files)), list(map(len, parts)))
        line = np.concatenate([np.empty(0, np.int64), *(np.arange(part.start, part.stop) for part in slices)])
        # The number last, for a collision of what is drawn.
        ranks = np.lexsort([entries[field] for field in ("number", *reversed(order))])
        self.entries = entries[ranks]
        self._files, self._file, self._line = files, file[ranks].tolist(), line[ranks].tolist()
        self.item = functools.lru_cache(REMEMBERED)(self._item)

    def __len__(self) -> int:
        return len(self.entries)

    def _item(self, place: int) -> Item:
        return self._files[self._file[place]][self._line[place]]

    def line(self, place: int) -> bytes:
        return self._files[self._file[place]].line(self._line[place])

"""Items between two stages: lines in a file, in slices that can be read one by one."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson

from keju.data_prepare.corpus import Item


@dataclass(frozen=True, slots=True)
class Numbered:
    """An item in its split.

    number: its portion in the upper 32 bits, its place in the portion in the lower ones.
    copy: which one, where an item is there more than once.
    """

    number: int
    split: str
    item: Item
    copy: int = 0

    def line(self) -> bytes:
        fields = [self.number, self.split, self.copy, self.item]
        # Copied: what orjson returns keeps the 4 KB that it was written in for as long as it lives.
        return bytes(memoryview(orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)))

    @classmethod
    def parsed(cls, line: bytes | memoryview) -> Numbered:
        number, split, copy, fields = orjson.loads(line)
        return cls(number, split, Item(**fields | {"keys": tuple(fields["keys"])}), copy)


def write_slices(path: Path, slices: Sequence[Iterable[bytes]]) -> None:
    """Lines of each slice, one slice after the other; whole or not there. `path`.npy has where each line begins, and
    `path`.slices.npy the number of the first line of each slice."""
    begins, first_lines, position = [], [], 0
    aside = path.with_name(f"{path.name}.part")
    with aside.open("wb") as file:
        for lines in slices:
            first_lines.append(len(begins))
            for line in lines:
                begins.append(position)
                position += file.write(line)
        file.flush()
        os.fsync(file.fileno())
    save(Path(f"{path}.npy"), np.array([*begins, position], np.int64))
    save(Path(f"{path}.slices.npy"), np.array([*first_lines, len(begins)], np.int64))
    aside.replace(path)


def save(path: Path, array: np.ndarray) -> None:
    """An array as a file that is whole or not there."""
    aside = path.with_name(f"{path.name}.part")
    with aside.open("wb") as file:
        np.save(file, array, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def load(path: Path) -> np.ndarray:
    """An array of `save`, mapped into memory."""
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))  # of the plain class, whose items come faster


class ItemFile:
    """Items of a file of `write_slices`, read where they are asked for."""

    def __init__(self, path: Path) -> None:
        self._begins = load(Path(f"{path}.npy"))
        self._first_lines = load(Path(f"{path}.slices.npy"))
        with path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if len(self) else b""

    def __len__(self) -> int:
        return len(self._begins) - 1

    def __getitem__(self, index: int) -> Numbered:
        return Numbered.parsed(self.line(index))

    def line(self, index: int) -> bytes:
        return self._bytes[self._begins[index] : self._begins[index + 1]]

    def slice(self, number: int) -> range:
        """Which lines are in the slice."""
        return range(self._first_lines[number], self._first_lines[number + 1])

    def __iter__(self) -> Iterator[Numbered]:
        return (self[index] for index in range(len(self)))

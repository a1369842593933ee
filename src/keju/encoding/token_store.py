"""Encoded trees on disk: a folder that behaves like the list of trees it was made of, read one tree at a time.

    ends.npy        int64 [trees, 6]: how many segments, tokens ... there are up to the end of each tree
    segments.npy, tokens.npy, flags.npy ...   see keju.encoding.tree_columns; tokens are uint16 where ids allow it
    places.npy      int64 [trees, 2]: number of the data file, line
    blocks.crc      uint32: CRC-32 of the blocks of all arrays, which are compared as they are read
    manifest.json   sizes and SHA-256 of the arrays, totals, what was left out

A folder takes its name when it is whole (keju.records.writing.whole_folder). It is found by `StoreKey`: a hash of all
that decides what is in it. What the data files are called takes no part, so that a moved data set keeps its tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from keju.encoding.array_file import BLOCK, ArrayReader
from keju.encoding.dataset import EncodedRecords
from keju.encoding.tree_columns import ARRAYS, TOKENS, restore
from keju.encoding.tree_totals import TreeTotals
from keju.errors import UserError
from keju.records.digests import file_digest
from keju.trees.lazy_trees import LazySequence, LazyTrees
from keju.trees.segment import Segment

MANIFEST, CHECKSUMS = "manifest.json", "blocks.crc"
NPY = (*ARRAYS, "ends", "places")
LISTED = 100  # reasons for leaving records out that are kept; the others are counted


class DamagedStore(UserError):
    """A folder that is no whole store of trees."""


@dataclass
class LeftOut:
    """Lines or records that were left out: how many, and of the first ones [number of the file, line, reason]."""

    count: int = 0
    first: list[tuple[int, int, str]] = field(default_factory=list)

    def add(self, file: int, line: int, reason: str) -> None:
        self.count += 1
        if len(self.first) < LISTED:
            self.first.append((file, line, reason))

    def lines(self, files: Sequence[Path]) -> list[str]:
        return [f"{files[file]}:{line}: {reason}" for file, line, reason in self.first]


@dataclass
class Manifest:
    """num_records: read and good, whether encoded or left out (`skipped`); `bad`: lines that were no records.
    arrays: name of each .npy file -> [bytes, SHA-256]; checksums: SHA-256 of blocks.crc; names: of values, by number.
    """

    files: list[str]
    num_records: int
    bad: LeftOut
    skipped: LeftOut
    totals: TreeTotals
    names: list[str]
    arrays: dict[str, tuple[int, str]]
    checksums: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises DamagedStore."""
        try:
            row = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            row["bad"], row["skipped"] = LeftOut(**row["bad"]), LeftOut(**row["skipped"])
            row["totals"] = TreeTotals(**row["totals"])
            return cls(**row)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DamagedStore(f"{folder / MANIFEST}: {error}") from error

    def reader(self, folder: Path, name: str) -> ArrayReader:
        """Of an array of the store in `folder`. Raises UserError or OSError where it is damaged."""
        counts = [-(-self.arrays[array][0] // BLOCK) for array in NPY]
        place = NPY.index(name)
        data = (folder / CHECKSUMS).read_bytes()
        if hashlib.sha256(data).hexdigest() != self.checksums or len(data) != 4 * sum(counts):
            raise UserError(f"{CHECKSUMS} is not what was written")
        start = sum(counts[:place])
        return ArrayReader(folder / f"{name}.npy", np.frombuffer(data, "<u4")[start : start + counts[place]])


class StoredTrees(LazyTrees):
    """The trees of a store. lengths: int32 or int64 [trees], tokens of each, in memory; totals: over all trees."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.totals, self._names = folder, manifest.totals, manifest.names
        self._ends = manifest.reader(folder, "ends")
        self._arrays = {name: manifest.reader(folder, name) for name in ARRAYS}
        self.lengths = self._token_counts()

    def _token_counts(self) -> np.ndarray:
        count = len(self._ends)
        lengths = np.empty(count, np.int32 if self.totals.deepest < 2**20 else np.int64)
        before = 0
        for start in range(0, count, 1 << 16):
            ends = self._ends.rows(start, min(start + (1 << 16), count))[:, TOKENS]
            lengths[start : start + len(ends)] = np.diff(ends, prepend=before)
            before = ends[-1]
        return lengths

    def item(self, index: int) -> Segment:
        bounds = self._ends.rows(max(index - 1, 0), index + 1)
        starts, ends = (bounds[0] if index else np.zeros(6, np.int64)).tolist(), bounds[-1].tolist()
        return restore(
            {name: self._arrays[name].rows(starts[column], ends[column]) for name, (*_, column) in ARRAYS.items()},
            self._names,
        )

    def __reduce__(self):
        """Processes that load data open the folder themselves."""
        return open_trees, (self.folder,)


class StoredPlaces(LazySequence[str]):
    """`file:line` of each tree; `files`: what the data files are called now."""

    def __init__(self, folder: Path, manifest: Manifest, files: Sequence[Path]) -> None:
        self._places, self._files = manifest.reader(folder, "places"), list(files)

    def __len__(self) -> int:
        return len(self._places)

    def item(self, index: int) -> str:
        ((file, line),) = self._places.rows(index, index + 1).tolist()
        return f"{self._files[file]}:{line}"


def open_trees(folder: Path) -> StoredTrees:
    return StoredTrees(folder, Manifest.read(folder))


@dataclass
class StoredRecords(EncodedRecords):
    """EncodedRecords of a store; bad: as `skipped`, of lines that are no records."""

    bad: list[str] = field(default_factory=list)


def open_store(folder: Path, files: Sequence[Path], *, thoroughly: bool = False) -> StoredRecords:
    """The records of a store; `files`: the data files that it was made of, as they are called now.

    thoroughly: read all of it and compare checksums, instead of sizes and shapes alone.
    Raises DamagedStore for what is not whole.
    """
    manifest = Manifest.read(folder)
    try:
        if set(manifest.arrays) != set(NPY) or len(manifest.files) != len(files):
            raise UserError("the manifest is of another store")
        for name, (size, digest) in manifest.arrays.items():
            path = folder / f"{name}.npy"
            if path.stat().st_size != size:
                raise UserError(f"{path.name} has {path.stat().st_size} bytes instead of {size}")
            if thoroughly and file_digest(path) != digest:
                raise UserError(f"{path.name} is not what was written")
        trees, places = StoredTrees(folder, manifest), StoredPlaces(folder, manifest, files)
        if not len(trees) == len(places) == manifest.totals.num_trees or len(trees) == 0:
            raise UserError("arrays of different lengths")
        last = trees._ends.rows(len(trees) - 1, len(trees))[0]
        for name, (*_, column) in ARRAYS.items():
            if len(trees._arrays[name]) != last[column]:
                raise UserError(f"{name}.npy has {len(trees._arrays[name])} rows instead of {last[column]}")
    except (OSError, ValueError) as error:
        raise DamagedStore(f"{folder}: {error}") from error
    skipped = manifest.skipped
    return StoredRecords(
        trees,
        places,
        skipped.lines(files),
        skipped.count - len(skipped.first),
        bad=manifest.bad.lines(files),
        num_bad=manifest.bad.count,
        num_records=manifest.num_records,
    )


def totals_of(trees: Sequence[Segment]) -> TreeTotals:
    return trees.totals if isinstance(trees, StoredTrees) else TreeTotals.of(trees)

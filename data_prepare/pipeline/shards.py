"""Files of records: one, or shards of it, plain or compressed, each of one or more parts that tasks write."""

from __future__ import annotations

import bisect
import contextlib
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import zstandard

from keju.data_prepare.pipeline.plan import Part
from keju.data_prepare.pipeline.rows import KINDS, kind_of, reply_of
from keju.records.writing import whole_file

SAMPLES = 3
LEVEL = 6  # of compression
COPIED_BYTES = 1 << 20


def file_name(kind: str, split: str) -> str:
    """The name without its end; of what is kept for PPO prompts alone are of use."""
    return "prompts_train" if split == "prompts" else f"{kind}_{split}"


def shard_name(name: str, shard: int, count: int, *, compress: bool) -> str:
    part = f"-{shard + 1:05}-of-{count:05}" if count > 1 else ""
    return f"{name}{part}.jsonl{'.zst' * compress}"


def put_together(parts: Sequence[Path], target: Path) -> None:
    """A file of the bytes of its parts, in their order; one part is not copied where the file system can do that."""
    if len(parts) == 1:
        with contextlib.suppress(OSError):
            os.link(parts[0], target)
            return
    with target.open("wb") as file:
        for path in parts:
            with path.open("rb") as part:
                shutil.copyfileobj(part, file, COPIED_BYTES)


class PartWriter:
    """Writes a part of a shard of every kind of record, whole or not at all, and counts what it writes.

    Parts lie in a folder that has the name of their shard.
    """

    def __init__(self, folder: Path, part: Part, *, compress: bool) -> None:
        self._split = part.split
        self._counts: dict[str, FileCounts] = {}
        self._paths = {}
        for kind in KINDS:
            if (kind, part.split) != ("prompts", "train"):
                name = file_name(kind, part.split)
                shard = folder / shard_name(name, part.shard, part.num_shards, compress=compress)
                self._paths[name] = shard / f"{part.part:05}"
        self._compress = compress
        self._stack = contextlib.ExitStack()
        self._files: dict[str, Any] = {}

    def __enter__(self) -> PartWriter:
        for name, path in self._paths.items():
            aside = self._stack.enter_context(whole_file(path))
            file = self._stack.enter_context(aside.open("wb"))
            if self._compress:
                writer = zstandard.ZstdCompressor(LEVEL, write_checksum=True).stream_writer(file, closefd=False)
                file = self._stack.enter_context(writer)
            self._files[name] = file
            self._counts[name] = FileCounts()
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._stack.__exit__(kind, error, trace)

    def add(self, row: dict[str, Any], source: str) -> None:
        name = file_name(kind_of(row), self._split)
        if source:
            row = row | {"source": source}
        self._files[name].write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
        self._counts[name].add(row)

    def files(self) -> dict[str, dict[str, Any]]:
        """Name without the number of the shard -> counts; see `FileCounts`."""
        return {name: counts.as_row() for name, counts in self._counts.items()}


class FileCounts:
    """Of a file or of a shard: rows, sources, characters of what is learned, answers a row, the first rows."""

    def __init__(self) -> None:
        self.rows = 0
        self.sources: Counter[str] = Counter()
        self.lengths: Counter[int] = Counter()
        self.answers: Counter[int] = Counter()
        self.samples: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        self.rows += 1
        self.sources[row.get("source", "")] += 1
        self.lengths[length_class(len(reply_of(row)))] += 1
        if "answers" in row:
            self.answers[len(row["answers"])] += 1
        if len(self.samples) < SAMPLES:
            self.samples.append(row)

    def as_row(self) -> dict[str, Any]:
        fields = {name: dict(getattr(self, name)) for name in ("sources", "lengths", "answers")}
        return {"rows": self.rows, "samples": self.samples, **fields}


LENGTHS = sorted({0, *(round(2 ** (power / 2)) for power in range(63))})


def length_class(length: int) -> int:
    """The largest of 0, 1, 2, 3, 4, 6, 8, 11, 16, ... (powers of the square root of two) not above the length."""
    return LENGTHS[bisect.bisect(LENGTHS, length) - 1]

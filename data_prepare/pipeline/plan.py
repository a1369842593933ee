"""What a run does, fixed before it begins: the same plan gives the same bytes, on however many processes."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from keju.data_prepare.corpus import Piece
from keju.data_prepare.raw_folder import states
from keju.records.writing import write_json

VERSION = 3  # raise it when the same plan gives other records
PLAN = "plan.json"
PIECE_BYTES = (512 << 10, 8 << 20)  # the smallest and the largest piece; short rows take 50 times as much memory
PIECES = 256  # of one corpus, where their sizes allow it
MIN_BUCKETS = 4  # so that several processes have something to do
BUCKET_BYTES = 8 << 20  # of raw data for each bucket of hashes: about 40 MB of signatures
SHARD_BYTES = 32 << 20  # of raw data for each shard of the training split
PART_BYTES = 2 << 20  # of raw data for each part of a shard: several tasks write one, where there are few
MOST_PARTS = 64  # of all shards together
# From the one that keeps a text which several splits have.
SPLITS = ("test", "dev", "prompts", "train")


@dataclass(frozen=True, slots=True)
class Part:
    """What one task writes: which part of which shard of a split; numbers from 0, and how many there are."""

    split: str
    shard: int
    num_shards: int
    part: int
    num_parts: int


@dataclass(frozen=True)
class Plan:
    """Fields that are not named by themselves:

    raw_dir, source: what is read, and what it is known again by.
    work: the folder of what lies between the stages.
    portions: the pieces that a task reads, one after the other.
    shares: split -> its share of all groups; the rest is for training.
    near_duplicates: the share of common 3-grams (Jaccard) from which two texts are taken for one; above 1: only equal
        ones.
    cleaning: fields of CleaningSettings.
    decontaminate, evaluation_source: folders of evaluation sets, and what their files are known again by.
    num_train_parts: how many tasks write a shard of the training split.
    mix: source -> weight; 1 for all others.
    own_splits: source -> "train", "dev" or "test", where the raw data have splits of their own. Of those splits that
        they have, shares says how much of the raw data is theirs.
    options: keywords of the corpus's `pieces` and `read`.
    """

    corpus: str
    version: int
    raw_dir: str
    source: str
    work: str
    seed: int
    shares: Mapping[str, float]
    portions: tuple[tuple[Piece, ...], ...]
    num_buckets: int
    num_train_shards: int
    num_train_parts: int = 1
    near_duplicates: float = 0.8
    on_bad_line: str = "error"
    compress: bool = False
    cleaning: Mapping[str, Any] = field(default_factory=dict)
    decontaminate: tuple[str, ...] = ()
    evaluation_source: str = ""
    mix: Mapping[str, float] = field(default_factory=dict)
    own_splits: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    pipeline: int = VERSION

    @functools.cached_property
    def drawn_shares(self) -> dict[str, float]:
        """Of the splits that the raw data do not have themselves."""
        own = set(self.own_splits.values())
        return {split: share for split, share in self.shares.items() if split not in own}

    @functools.cached_property
    def parts(self) -> list[Part]:
        """Those of a split follow each other, and those of a shard."""
        found = []
        for split in SPLITS:
            share = self.shares.get(split, 1 - sum(self.shares.values()))
            shards = max(1, round(self.num_train_shards * share))
            parts = self.num_train_parts if split == "train" else 1
            found += [Part(split, shard, shards, part, parts) for shard in range(shards) for part in range(parts)]
        return found

    def save(self) -> None:
        write_json(Path(self.work) / PLAN, dataclasses.asdict(self))

    @classmethod
    def load(cls, work: str | Path) -> Plan:
        fields = json.loads((Path(work) / PLAN).read_text(encoding="utf-8"))
        portions = tuple(tuple(Piece(**piece) for piece in pieces) for pieces in fields["portions"])
        return cls(**fields | {"portions": portions, "decontaminate": tuple(fields["decontaminate"])})


def fields_by_size(raw: Path, pieces: Callable[[int], list[Piece]]) -> dict[str, Any]:
    """The fields of a plan that follow from how much raw data there is. pieces: of at least so many bytes."""
    size = bytes_in(raw)
    return {
        "portions": in_portions(raw, pieces(piece_bytes(size)), piece_bytes(size)),
        "num_buckets": num_buckets(size),
        "num_train_shards": num_train_shards(size),
        "num_train_parts": num_train_parts(size),
    }


def bytes_in(path: Path) -> int:
    """Of a file, or of all files in a folder."""
    return sum(state[0] for state in states(path).values())


def in_portions(folder: Path, pieces: Sequence[Piece], num_bytes: int) -> tuple[tuple[Piece, ...], ...]:
    """Consecutive pieces together, up to about `num_bytes`: a corpus of many small files makes few tasks."""
    root = folder.parent if folder.is_file() else folder
    count = Counter(piece.path for piece in pieces)
    sizes = {path: (root / path).stat().st_size / number for path, number in count.items()}
    portions: list[list[Piece]] = [[]]
    size = 0.0
    for piece in pieces:
        if size >= 0.75 * num_bytes:
            portions.append([])
            size = 0.0
        portions[-1].append(piece)
        size += sizes[piece.path]
    return tuple(map(tuple, portions))


def piece_bytes(raw_bytes: int) -> int:
    smallest, largest = PIECE_BYTES
    return min(max(smallest, raw_bytes // PIECES), largest)


def num_buckets(raw_bytes: int) -> int:
    return max(MIN_BUCKETS, math.ceil(raw_bytes / BUCKET_BYTES))


def num_train_shards(raw_bytes: int) -> int:
    return max(1, math.ceil(raw_bytes / SHARD_BYTES))


def num_train_parts(raw_bytes: int) -> int:
    shards = num_train_shards(raw_bytes)
    return max(1, min(math.ceil(raw_bytes / shards / PART_BYTES), MOST_PARTS // shards))

"""Record files -> a store of trees, by several processes, with the same bytes however many there are.

The reading process hands out blocks of raw lines in their order; the others parse and encode them. Nothing but a few
blocks is in memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from keju.encoding.array_file import ArrayWriter, file_checksums
from keju.encoding.dataset import encode_record, nothing_usable
from keju.encoding.encoder import Encoder
from keju.encoding.refusals import Unencodable
from keju.encoding.token_store import CHECKSUMS, MANIFEST, NPY, LeftOut, Manifest
from keju.encoding.tree_columns import ARRAYS, TreeColumns, flatten
from keju.encoding.tree_totals import TreeTotals
from keju.encoding.workers import map_in_order
from keju.errors import UserError
from keju.records.digests import file_digest
from keju.records.folds import Fold
from keju.records.reading import check_on_bad_line, parse_row, raw_rows
from keju.records.writing import write_json
from keju.trees.segment import Segment

BLOCK_BYTES = 1 << 19  # of raw text that one process encodes at once
BLOCK_ROWS = 256  # of rows that are no text yet

Row = tuple[int, Path, int, object]  # number of the file, file, line, what parse_row takes


@dataclass
class Block:
    """What became of a block of rows. Its events are ordered: each stands after `num_records` good records."""

    columns: TreeColumns
    places: list[tuple[int, int]]
    records: list[int]  # of each tree: the number of its record in this block
    totals: list[TreeTotals]  # of each record
    bad: list[tuple[int, int, int, str]] = field(default_factory=list)  # records before, file, line, reason
    skipped: list[tuple[int, int, int, str]] = field(default_factory=list)
    error: tuple[int, UserError] | None = None  # records before, what ends the run


def encode_block(rows: list[Row], encoder: Encoder, form: str, on_bad_line: str, fold: Fold | None) -> Block:
    trees: list[Segment] = []
    block = Block(flatten([]), [], [], [])
    for number, file, line, raw in rows:
        where = f"{file}:{line}"
        done = len(block.totals)
        try:
            record = parse_row(raw, where)
        except UserError as error:
            if on_bad_line == "error":
                block.error = (done, UserError(f"{where}: {error}"))
                break
            block.bad.append((done, number, line, str(error)))
            continue
        if fold is not None and not fold.holds(record):
            continue
        try:
            found = encode_record(record, encoder, form)
        except UserError as error:
            if on_bad_line == "skip" and isinstance(error, Unencodable):
                block.bad.append((done, number, line, str(error).removeprefix(f"{where}: ")))
                continue
            block.error = (done, error)
            break
        if isinstance(found, str):
            block.skipped.append((done, number, line, found.removeprefix(f"{where}: ")))
            found = []
        trees += found
        block.places += [(number, line)] * len(found)
        block.records += [done] * len(found)
        block.totals.append(TreeTotals.of(found))
    block.columns = flatten(trees)
    return block


def build_store(
    folder: Path,
    files: Sequence[Path],
    encoder: Encoder,
    form: str,
    *,
    on_bad_line: str = "error",
    max_samples: int | None = None,
    fold: Fold | None = None,
    num_workers: int = 1,
    on_records: Callable[[int, int, int], None] = lambda records, tokens, num_bytes: None,
) -> None:
    """Fills the empty `folder`, which counts as a store once it is whole: make it with whole_folder.

    on_records: called with the records, tokens and bytes of text that are new, for a bar.
    Raises UserError for what `read_records` and `encode_records` refuse, the first in the order of the files.
    """
    check_on_bad_line(on_bad_line)
    writer = _Writer(folder, encoder.tokenizer)
    encode = partial(encode_block, encoder=encoder, form=form, on_bad_line=on_bad_line, fold=fold)
    sizes: list[int] = []  # of the blocks handed out, not yet come back
    with ExitStack() as stack:
        blocks = map_in_order(encode, _blocks(files, sizes), num_workers)
        stack.callback(blocks.close)
        for block in blocks:
            left = None if max_samples is None else max_samples - writer.manifest.num_records
            tokens = writer.append(block, left)
            on_records(len(block.totals[:left]), tokens, sizes.pop(0))
            if left is not None and len(block.totals) >= left:
                break
    manifest = writer.manifest
    if not manifest.totals.num_trees:
        skipped, bad = manifest.skipped, manifest.bad
        if skipped.count or not bad.count:
            raise UserError(
                nothing_usable(skipped.lines(files), skipped.count)
                if manifest.num_records or fold
                else f"{files[0]}: the file has no records"
            )
        raise UserError(f"{files[0]}: no usable record, {bad.count} bad ones such as {bad.lines(files)[0]}")
    manifest.files = [file.name for file in files]
    writer.close()


def _blocks(files: Sequence[Path], sizes: list[int]) -> Iterator[list[Row]]:
    rows: list[Row] = []
    size = 0
    for number, file in enumerate(files):
        for line, raw in raw_rows(file):
            rows.append((number, file, line, raw))
            size += len(raw) + 1 if isinstance(raw, bytes) else 0
            if size >= BLOCK_BYTES or len(rows) >= (BLOCK_ROWS if not isinstance(raw, bytes) else BLOCK_BYTES):
                sizes.append(size)
                yield rows
                rows, size = [], 0
    if rows:
        sizes.append(size)
        yield rows


class _Writer:
    """The arrays of a store while they grow."""

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        self.folder = folder
        self.manifest = Manifest([], 0, LeftOut(), LeftOut(), TreeTotals(), [], {})
        small = max(len(tokenizer) - 1, *tokenizer.get_vocab().values(), *tokenizer.all_special_ids) < 1 << 16
        self._arrays = {
            name: ArrayWriter(folder / f"{name}.npy", "<u2" if name == "tokens" and small else dtype, width)
            for name, (dtype, width, _) in ARRAYS.items()
        }
        self._ends = ArrayWriter(folder / "ends.npy", "<i8", 6)
        self._places = ArrayWriter(folder / "places.npy", "<i8", 2)
        self._total = np.zeros(6, np.int64)

    def append(self, block: Block, left: int | None) -> int:
        """Adds the first `left` records of a block (None: all) -> their tokens. Raises UserError for its error."""
        inside = (lambda records: True) if left is None else (lambda records: records < left)
        manifest = self.manifest
        columns = block.columns
        if left is not None:
            columns = columns.head(sum(record < left for record in block.records))
        for into, events in ((manifest.bad, block.bad), (manifest.skipped, block.skipped)):
            for records, *event in events:
                if inside(records):
                    into.add(*event)
        if block.error is not None and inside(block.error[0]):
            raise block.error[1]
        numbers = np.array([self._number(name) for name in columns.names] or [0], np.uint16)
        for name, rows in columns.arrays.items():
            if name.endswith("_names"):
                rows = numbers[rows]
            writer = self._arrays[name]
            assert name != "tokens" or not rows.size or int(rows.max()) <= np.iinfo(writer.dtype).max
            writer.append(rows)
        self._ends.append(columns.ends + self._total)
        if len(columns):
            self._total = self._total + columns.ends[-1]
        self._places.append(np.array(block.places[: len(columns)], np.int64).reshape(-1, 2))
        before = manifest.totals.num_tokens
        for totals in block.totals[:left]:
            manifest.totals.add(totals)
        manifest.num_records += len(block.totals[:left])
        return manifest.totals.num_tokens - before

    def _number(self, name: str) -> int:
        if name not in self.manifest.names:
            self.manifest.names.append(name)
        return self.manifest.names.index(name)

    def close(self) -> None:
        """Completes the arrays; the manifest comes last."""
        sums = {}
        for writer in (*self._arrays.values(), self._ends, self._places):
            writer.close()
            name, size = writer.path.stem, writer.path.stat().st_size
            digest, sums[name] = file_checksums(writer.path)
            self.manifest.arrays[name] = (size, digest)
        assert set(self.manifest.arrays) == set(NPY)
        with (self.folder / CHECKSUMS).open("xb") as file:
            file.write(np.concatenate([sums[name] for name in NPY]).astype("<u4").tobytes())
            file.flush()
            os.fsync(file.fileno())
        self.manifest.checksums = file_digest(self.folder / CHECKSUMS)
        write_json(self.folder / MANIFEST, self.manifest.as_json())

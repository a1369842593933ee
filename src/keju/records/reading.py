"""Read records from .jsonl or .ndjson (one a line), .json (an array, or one a line), .txt (one document a line), each
also as .zst, .gz or .xz, from tables (.parquet, .arrow: one a row), and from sets of such files: keju.records.shards.

A bad line is never silently dropped: it is an error that names `file:line`, or is skipped, counted and reported.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

from keju.errors import UserError
from keju.records.formats import detect
from keju.records.json_text import array_rows, parsed
from keju.records.opening import begins_array, decoded, numbered_lines
from keju.records.record import ChatRecord, RankedRecord, Record, TextRecord
from keju.records.shards import plain_suffix, record_files
from keju.records.tables import table_rows

logger = logging.getLogger(__name__)

ON_BAD_LINE = ("error", "skip")
KIND_NAMES = {TextRecord: "text", ChatRecord: "chat", RankedRecord: "ranked-answers"}


@dataclass(frozen=True)
class RecordFile(Sequence):
    """The records of a file, like a list; `skipped` has a "file:line: reason" for every line left out."""

    path: Path
    records: list[Record]
    skipped: list[str]

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index):
        return self.records[index]


def read_records(path: str | Path, *, on_bad_line: str = "error", kinds: tuple[type, ...] | None = None) -> RecordFile:
    """Read all records of a file.

    on_bad_line: "error" stops at the first bad line, "skip" leaves bad lines out and warns how many and which.
    kinds: the record classes that the caller can use; a record of another kind is a bad line.
    Raises UserError "file:line: what is wrong", and "file: ..." if the file as a whole is missing or of no use.
    """
    path = Path(path)
    skipped: list[str] = []
    records = list(iterate_records(path, on_bad_line=on_bad_line, kinds=kinds, on_skipped=skipped.append))
    if not records and skipped:
        raise UserError(f"{path}: no usable record, {len(skipped)} bad ones such as {skipped[0]}")
    if not records:
        raise UserError(f"{path}: the file has no records")
    if skipped:
        total = len(skipped) + len(records)
        logger.warning("%s: skipped %d bad of %d records, such as %s", path, len(skipped), total, skipped[0])
    return RecordFile(path, records, skipped)


def iterate_records(
    path: str | Path,
    *,
    on_bad_line: str = "error",
    kinds: tuple[type, ...] | None = None,
    on_skipped: Callable[[str], object] = lambda reason: None,
) -> Iterator[Record]:
    """The records of a file one by one, in constant memory; see `read_records`.

    on_skipped: called with "file:line: reason" for every line left out.
    """
    check_on_bad_line(on_bad_line)
    for file in record_files(path):
        for line, raw in raw_rows(file):
            where = f"{file}:{line}"
            try:
                record = parse_row(raw, where, kinds)
            except UserError as error:
                if on_bad_line == "error":
                    raise UserError(f"{where}: {error}") from error
                on_skipped(f"{where}: {error}")
            else:
                yield record


def check_on_bad_line(on_bad_line: str) -> None:
    if on_bad_line not in ON_BAD_LINE:
        raise UserError(f"must be one of {', '.join(ON_BAD_LINE)}, not {on_bad_line!r}", option="on_bad_line")


def raw_rows(file: Path) -> Iterator[tuple[int, Any]]:
    """(line number, what `parse_row` takes: the bytes of a line of JSON, a parsed value, or what is wrong with it)."""
    return _READERS[plain_suffix(file)](file)


def count_rows(file: Path) -> int:
    """How many rows a file has, good and bad ones. Raises UserError where it cannot be read to its end."""
    return sum(1 for _ in raw_rows(file))


def iterate_rows(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file:line", the object) of every row of a file or a set of shards, whatever its fields mean.

    Raises UserError "file:line: what is wrong".
    """
    for file in record_files(path):
        for line, raw in raw_rows(file):
            where = f"{file}:{line}"
            try:
                value = row_value(raw)
                if not isinstance(value, dict):
                    raise UserError("expected a JSON object")
            except UserError as error:
                raise UserError(f"{where}: {error}") from error
            yield where, value


def row_value(raw: Any) -> Any:
    """The value of one of `raw_rows`. Raises UserError that says what is wrong, without the place."""
    value = decoded(raw) if isinstance(raw, bytes) else raw
    value = parsed(value) if isinstance(raw, bytes) and isinstance(value, str) else value
    if isinstance(value, UserError):
        raise value
    return value


def parse_row(raw: Any, where: str, kinds: tuple[type, ...] | None = None) -> Record:
    """Raises UserError that says what is wrong, without the place."""
    record = detect(row_value(raw))
    if kinds is not None and not isinstance(record, kinds):
        wanted = " or ".join(KIND_NAMES[kind] for kind in kinds)
        raise UserError(f"this is a {KIND_NAMES[type(record)]} record, but {wanted} records are needed here")
    return replace(record, where=where)


def json_lines(path: Path) -> Iterator[tuple[int, bytes | UserError]]:
    """(line number, what `row_value` takes), of lines that are not blank."""
    for number, raw in numbered_lines(path):
        if isinstance(raw, UserError):
            yield number, raw
            continue
        raw = raw.strip(b"\r\n")
        stripped = raw.strip()
        # An ideographic space is blank too.
        if stripped and (stripped[0] < 128 or stripped.decode("utf-8", "replace").strip()):
            yield number, raw


def _text_lines(path: Path) -> Iterator[tuple[int, Any]]:
    for number, raw in numbered_lines(path):
        line = decoded(raw)
        if isinstance(line, UserError):
            yield number, line
        elif line.strip():
            yield number, {"text": line}


def _json_file(path: Path) -> Iterator[tuple[int, Any]]:
    """An array of records; many a file named .json holds one record a line instead."""
    return array_rows(path) if begins_array(path) else json_lines(path)


_READERS: dict[str, Callable[[Path], Iterator[tuple[int, Any]]]] = {
    ".jsonl": json_lines,
    ".ndjson": json_lines,
    ".json": _json_file,
    ".txt": _text_lines,
    ".parquet": table_rows,
    ".arrow": table_rows,
}


def first_records(records: Sequence[Record], most: int | None, flag: str) -> list[Record]:
    """The first of them, and how many that leaves out is said. flag: whose value `most` is (None: all)."""
    if most is not None and most < len(records):
        print(f"{flag} {most} leaves out {len(records) - most} of {len(records)} records")
    return list(records)[:most]

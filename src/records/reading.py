"""Read records from .jsonl (one a line), .json (an array, or one a line) and .txt (one document a line).

A bad line is never silently dropped: it is an error that names `file:line`, or is skipped, counted and reported.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

from keju.records.formats import detect
from keju.records.json_text import array_items, malformed, parsed
from keju.records.record import ChatRecord, RankedRecord, Record, TextRecord

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
    Raises ValueError "file:line: what is wrong", and "file: ..." if the file as a whole is missing or of no use.
    """
    if on_bad_line not in ON_BAD_LINE:
        raise ValueError(f"--on_bad_line must be one of {', '.join(ON_BAD_LINE)}, not {on_bad_line!r}")
    path = _existing_file(Path(path))
    records: list[Record] = []
    skipped: list[str] = []
    for line, value in _READERS[path.suffix](path):
        where = f"{path}:{line}"
        try:
            records.append(_record(value, where, kinds))
        except ValueError as error:
            if on_bad_line == "error":
                raise ValueError(f"{where}: {error}") from error
            skipped.append(f"{where}: {error}")
    if not records and skipped:
        raise ValueError(f"{path}: no usable record, {len(skipped)} bad ones such as {skipped[0]}")
    if not records:
        raise ValueError(f"{path}: the file has no records")
    if skipped:
        total = len(skipped) + len(records)
        logger.warning("%s: skipped %d bad of %d records, such as %s", path, len(skipped), total, skipped[0])
    return RecordFile(path, records, skipped)


def _existing_file(path: Path) -> Path:
    if path.is_dir():
        raise ValueError(f"{path}: is a folder, expected a file of records")
    if not path.is_file():
        beside = sorted(file.name for file in path.parent.glob("*") if file.suffix in _READERS)
        found = f"; this folder has {', '.join(beside[:8])}" if beside else ""
        raise ValueError(f"{path}: no such file{found}")
    if path.suffix not in _READERS:
        raise ValueError(f"{path}: records are read from files that end in {', '.join(_READERS)}")
    return path


def _record(value: Any, where: str, kinds: tuple[type, ...] | None) -> Record:
    if isinstance(value, ValueError):
        raise value
    record = detect(value)
    if kinds is not None and not isinstance(record, kinds):
        wanted = " or ".join(KIND_NAMES[kind] for kind in kinds)
        raise ValueError(f"this is a {KIND_NAMES[type(record)]} record, but {wanted} records are needed here")
    return replace(record, where=where)


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, JSON value or what is wrong with the line)."""
    for number, line in _lines(path):
        yield number, line if isinstance(line, ValueError) else parsed(line)


def _text_lines(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in _lines(path):
        yield number, line if isinstance(line, ValueError) else {"text": line}


def _json_file(path: Path) -> Iterator[tuple[int, Any]]:
    """An array of records; many a file named .json holds one record a line instead."""
    with path.open("rb") as file:
        start = file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip()
    return _json_array(path) if start.startswith(b"[") else _json_lines(path)


def _json_array(path: Path) -> Iterator[tuple[int, Any]]:
    """The items of an array with the line each begins at. A syntax error ends it: what follows cannot be trusted."""
    try:
        yield from array_items(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: {malformed(error)}") from error


def _lines(path: Path) -> Iterator[tuple[int, str | ValueError]]:
    """Numbered lines that are not blank. Only "\\n" ends a line: str.splitlines would cut at U+2028 inside a text."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip("\r\n")
            except UnicodeDecodeError as error:
                yield number, ValueError(f"not UTF-8 text ({error.reason} at byte {error.start} of the line)")
                continue
            if line.strip():
                yield number, line


_READERS = {".jsonl": _json_lines, ".json": _json_file, ".txt": _text_lines}

"""Files of examples in the formats that people have: alpaca, sharegpt, messages, TRL, KTO, BELLE, Firefly, MOSS, texts.

The raw data is a file or a folder (with folders inside) of .jsonl, .ndjson, .json, .txt, .csv, .tsv (each also .gz,
.zst or .xz), .parquet and .arrow. Formats are told by their fields: keju.records.formats and
keju.data_prepare.formats.layouts list them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby, islice, takewhile
from pathlib import Path
from typing import Any

from keju.data_prepare.corpus import BadRow, Item, Piece
from keju.data_prepare.formats.canonical import group_of, row_of
from keju.data_prepare.formats.layouts import prompt_key, records_of
from keju.data_prepare.formats.rows import SUFFIXES, Rows, kind_of, pieces_of, row_before, rows_of
from keju.data_prepare.raw_files import check_encoding, whole_text
from keju.data_prepare.raw_folder import raw_files
from keju.errors import UserError
from keju.records.opening import COMPRESSED
from keju.records.record import ChatRecord, RankedRecord, Record, TextRecord

VERSION = 2
DOWNLOAD = "your own files: --raw_dir names one of them or their folder"
WRONG = ()  # the answers are those of the files

CURATED = True  # what these rows say is what people mean them to say

DOCUMENTS = ("line", "file")
METADATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
OTHERS = {
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "is a spreadsheet; save it as .csv (UTF-8)"),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar", ".bz2", ".gz", ".xz", ".zst"), "must be unpacked first"),
}
MAX_ANSWERS = 256  # of one item, where a KTO file has very many rows of one prompt


def pieces(folder: str | Path, piece_bytes: int, document: str = "line") -> list[Piece]:
    """All files of the folder by name but those of `not_read`, or the one file; large ones in parts.

    document: what one text of a .txt file is, "line" or "file".
    Raises UserError where there is no such file, or one is not what its name says.
    """
    if document not in DOCUMENTS:
        raise UserError(f"must be one of {', '.join(DOCUMENTS)}, not {document!r}", option="document")
    root, names = _files(Path(folder))
    found: list[Piece] = []
    for name in names:
        if document == "file" and kind_of(root / name) == ".txt":
            check_encoding(root / name)
            found.append(Piece(name))
        else:
            found += pieces_of(root / name, name, piece_bytes)
    return found


def read(folder: str | Path, piece: Piece, document: str = "line") -> Iterator[Item | BadRow]:
    """The items of one piece. Rows with marked answers (KTO) that follow each other with the same prompt are one item,
    which belongs to the piece where the first of them is."""
    folder = Path(folder)
    path = (folder.parent if folder.is_file() else folder) / piece.path
    if document == "file" and kind_of(path) == ".txt":
        text = whole_text(path)
        row = text if isinstance(text, UserError) else {"text": text.strip("\n")}
        yield from _items(1, row, piece.path)
        return
    at_start = True
    for key, run in groupby(_with_whole_runs(path, piece), key=lambda row: prompt_key(row[1])):
        if key is None:
            for line, value in run:
                yield from _items(line, value, piece.path)
        elif at_start and prompt_key(row_before(path, piece)) == key:
            for _ in run:
                pass
        else:
            while rows := list(islice(run, MAX_ANSWERS)):
                yield from _ranked(rows, piece.path)
        at_start = False


def _files(folder: Path) -> tuple[Path, list[str]]:
    """(root, the names below it)."""
    if folder.is_file():
        if not kind_of(folder):
            raise UserError(f"{folder}: expected a file of {_suffixes()}", option="raw_dir")
        return folder.parent, [folder.name]
    if not folder.is_dir():
        raise UserError(f"{folder}: no such file or folder", option="raw_dir")
    left_out = not_read(folder)
    names = [name for name in raw_files(folder)[0] if name not in left_out]
    if not names:
        there = next((f"; {name} {why}" for name, why in left_out.items()), "")
        raise UserError(f"{folder} has no file of {_suffixes()}{there}", option="raw_dir")
    return folder, names


def not_read(folder: str | Path) -> dict[str, str]:
    """Name of a file or link below a folder that is not read -> why not."""
    folder = Path(folder)
    if not folder.is_dir():
        return {}
    names, left_out = raw_files(folder)
    for name in names:
        path = folder / name
        if path.name.lower() in METADATA:
            left_out[name] = "describes data and holds none"
        elif not kind_of(path):
            left_out[name] = OTHERS.get(path.suffix.lower(), "is no file of records by its name")
        elif path.stat().st_size == 0:
            left_out[name] = "is empty"
    return left_out


def _suffixes() -> str:
    return f"{', '.join(SUFFIXES)} (all but the last two also with {' or '.join(COMPRESSED)})"


def _with_whole_runs(path: Path, piece: Piece) -> Rows:
    """The rows of a piece, and those after it that go on with the KTO prompt of its last row."""
    key = None
    for line, value in rows_of(path, piece):
        key = prompt_key(value)
        yield line, value
    if key is not None and piece.end is not None:
        after = rows_of(path, Piece(piece.path, piece.end, None, line + 1))
        yield from takewhile(lambda row: prompt_key(row[1]) == key, after)


def _items(line: int, value: Any, name: str) -> Iterator[Item | BadRow]:
    where = f"{name}:{line}"
    try:
        if isinstance(value, UserError):
            raise value
        records = records_of(value)
    except UserError as error:
        yield BadRow(where, str(error))
        return
    for record in records:
        yield Item(row_of(record, _is_prompt_alone(value, record)), where, group_of(record), source=name)


def _is_prompt_alone(value: Any, record: Record) -> bool:
    """Whether a row was written as a prompt: a record does not tell a prompt from a text, or from an open chat."""
    if isinstance(value, list):
        return len(value) % 2 == 1
    others = {"label", "completion", "messages", "conversations", "text"}
    if "prompt" not in value or any(value.get(name) is not None for name in others):
        return False
    return isinstance(record, TextRecord) or (
        isinstance(record, ChatRecord) and record.messages[-1].role != "assistant"
    )


def _ranked(rows: list[tuple[int, Any]], name: str) -> Iterator[Item | BadRow]:
    """The items of rows with marked answers: one for those that follow each other with the same prompt."""
    found: list[tuple[int, RankedRecord]] = []
    for line, value in rows:
        try:
            found += [(line, record) for record in records_of(value)]
        except UserError as error:
            yield BadRow(f"{name}:{line}", str(error))
    for _, group in groupby(found, key=lambda entry: replace(entry[1], answers=())):
        numbered = list(group)
        line, first = numbered[0]
        where = f"{name}:{line}"
        merged = replace(first, answers=tuple(answer for _, record in numbered for answer in record.answers))
        yield Item(row_of(merged), where, group_of(merged), source=name)

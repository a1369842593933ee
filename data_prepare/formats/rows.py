"""Files of rows: which parts a file has, and the JSON values of a part with the line (or row) each begins at.

.jsonl, .json (an array, or one value a line), .txt (a document a line), .csv and .tsv, all of them also as .gz or .zst,
and .parquet. A row that cannot be read is given as the ValueError that says why, without the place.
"""

from __future__ import annotations

import csv
import json
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keju.data_prepare.corpus import Piece
from keju.data_prepare.formats.json_array import array_items
from keju.data_prepare.formats.layouts import KNOWN_FIELDS
from keju.data_prepare.formats.raw_lines import COMPRESSED, blocks, encoding_of, line_before, line_cuts, text_lines

SUFFIXES = (".jsonl", ".json", ".txt", ".csv", ".tsv", ".parquet")
MAX_CELL = 1 << 24  # characters; where a quote is never closed, the reader stops there
# Columns of a table whose cells are JSON where they begin with a bracket.
NESTED = {"messages", "conversations", "conversation", "history", "answers", "instances", "chat"}
# The prompt of a line that only ranks texts. It is true of any text.
UNPROMPTED = "请写一段文字。"

Rows = Iterator[tuple[int, Any]]


def kind_of(path: Path) -> str:
    """The suffix without .gz and .zst, such as ".jsonl"; "" if such files are not read."""
    suffix = Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix
    return suffix if suffix in SUFFIXES and not (suffix == ".parquet" and path.suffix in COMPRESSED) else ""


def pieces_of(path: Path, name: str, piece_bytes: int) -> list[Piece]:
    """Parts of a file of about so many bytes, where it can be cut: at lines, or at a Parquet file's row groups.

    Raises ValueError "file: ..." for a file that as a whole is not what its name says.
    """
    kind = kind_of(path)
    if path.stat().st_size == 0:
        return []
    if kind == ".parquet":
        return _row_groups(path, name, piece_bytes)
    encoding_of(path)
    if kind == ".csv" or (kind == ".tsv" and _tsv_columns(path)):
        _table_columns(path)
    if kind == ".json" and _is_one_object(path):
        raise ValueError(f"{path}: one JSON object; expected an array of records, or one record a line")
    if path.suffix in COMPRESSED or kind == ".csv" or (kind == ".json" and _begins_array(path)):
        return [Piece(name)]
    return [Piece(name, start, end, line) for start, end, line in line_cuts(path, piece_bytes)]


def rows_of(path: Path, piece: Piece) -> Rows:
    """The rows of one piece, numbered by their line in the file, counted from 1 (Parquet: by their row)."""
    kind = kind_of(path)
    if kind == ".parquet":
        return _parquet_rows(path, piece)
    encoding = encoding_of(path)
    data = blocks(path, piece.start, piece.end)
    if kind == ".json" and _begins_array(path):
        return array_items(data, encoding)
    if kind == ".csv":
        return _csv_rows(path, text_lines(data, encoding, end=b""))
    lines = ((number, line) for number, line in text_lines(data, encoding, piece.first_line) if not _is_blank(line))
    if kind == ".txt":
        return ((number, line if isinstance(line, ValueError) else {"text": line}) for number, line in lines)
    if kind == ".tsv":
        return _tsv_rows(path, lines)
    return ((number, line if isinstance(line, ValueError) else parsed(line)) for number, line in lines)


def row_before(path: Path, piece: Piece) -> Any:
    """The row before a piece, None where the piece is the first or that row cannot be read."""
    if piece.start == 0:
        return None
    if kind_of(path) == ".parquet":
        rows = deque(_parquet_rows(path, Piece(piece.path, piece.start - 1, piece.start)), maxlen=1)
        return rows[0][1] if rows else None
    lines = list(text_lines([line_before(path, piece.start)], encoding_of(path), 2))
    if not lines or isinstance(lines[0][1], ValueError):
        return None
    return next(_tsv_rows(path, iter(lines)))[1] if kind_of(path) == ".tsv" else parsed(lines[0][1])


def parsed(line: str) -> Any:
    """The JSON value of a line, or a ValueError that says where it is malformed."""
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        return ValueError(f"malformed JSON ({error.msg} at column {error.colno})")
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond Python's limits
        return ValueError(f"malformed JSON ({error})")


def _is_blank(line: str | ValueError) -> bool:
    return isinstance(line, str) and not line.strip()


def _beginning(path: Path) -> bytes:
    return next(blocks(path), b"").removeprefix(b"\xef\xbb\xbf").lstrip()


def _begins_array(path: Path) -> bool:
    return _beginning(path).startswith(b"[")


def _is_one_object(path: Path) -> bool:
    """Whether an object is spread over lines: its first line is a bracket alone."""
    return _beginning(path).split(b"\n", 1)[0].strip() == b"{"


def _tsv_columns(path: Path) -> list[str]:
    """The names in the first line, or [] if they are no names of fields: then each line is texts, best first."""
    first = next((line for _, line in text_lines(blocks(path), encoding_of(path)) if not _is_blank(line)), "")
    names = [name.strip() for name in first.split("\t")] if isinstance(first, str) else []
    return names if _are_columns(names) else []


def _are_columns(names: list[str]) -> bool:
    return len(set(names)) == len(names) and any(fields <= set(names) for fields in KNOWN_FIELDS)


def _tsv_rows(path: Path, lines: Rows) -> Rows:
    columns = _tsv_columns(path)
    for number, line in lines:
        if isinstance(line, ValueError):
            yield number, line
            continue
        cells = line.split("\t")
        if not columns:
            yield number, {"instruction": UNPROMPTED, "output": cells}
        elif [cell.strip() for cell in cells] != columns:
            yield number, _table_row(columns, cells)


def _table_columns(path: Path) -> list[str]:
    """The names in the first row. Raises ValueError if they are no fields of records."""
    if kind_of(path) == ".tsv":
        return _tsv_columns(path)
    first = next(_csv_cells(text_lines(blocks(path), encoding_of(path), end=b"")), (1, []))[1]
    names = [] if isinstance(first, ValueError) else [name.strip() for name in first]
    if not _are_columns(names):
        example = "prompt,completion or instruction,input,output or text"
        raise ValueError(f"{path}:1: the first row must name known fields, each once, such as {example}")
    return names


def _csv_rows(path: Path, lines: Rows) -> Rows:
    columns = _table_columns(path)
    rows = _csv_cells(lines)
    next(rows, None)
    for number, cells in rows:
        yield number, cells if isinstance(cells, ValueError) else _table_row(columns, cells)


def _csv_cells(lines: Rows) -> Iterator[tuple[int, list[str] | ValueError]]:
    """(line where a row begins, its cells or what is wrong with it)."""
    csv.field_size_limit(MAX_CELL)
    broken: list[tuple[int, ValueError]] = []

    def good() -> Iterator[str]:
        for number, line in lines:
            if isinstance(line, ValueError):
                broken.append((number, line))
                yield "\n"  # a row that is not there, so that lines are counted
            else:
                yield line + "\n"

    reader = csv.reader(good(), strict=True)
    while True:
        begin = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            cells = None
        except csv.Error as error:
            cells = ValueError(f"malformed CSV ({error}); the row ends at line {reader.line_num}")
        if broken:  # and with them the row that they are a part of
            yield from broken
            broken.clear()
        elif cells is None:
            return
        elif isinstance(cells, ValueError) or "".join(cells).strip():
            yield begin, cells


def _table_row(columns: list[str], cells: list[str]) -> Any:
    if len(cells) != len(columns):
        return ValueError(f"{len(cells)} cells, but the first row names {len(columns)} columns")
    row: dict[str, Any] = {name: cell for name, cell in zip(columns, cells, strict=True) if cell != ""}
    for name in NESTED & row.keys():
        if row[name].startswith(("[", "{")):
            row[name] = parsed(row[name])
            if isinstance(row[name], ValueError):
                return ValueError(f'"{name}": {row[name]}')
    if {"prompt", "completion"} <= row.keys() and "label" in row:
        known = {"true": True, "1": True, "false": False, "0": False}
        row["label"] = known.get(row["label"].strip().lower(), row["label"])
    return row


def _row_groups(path: Path, name: str, piece_bytes: int) -> list[Piece]:
    """Pieces whose `start` and `end` count row groups, and whose `first_line` counts rows."""
    groups = _parquet(path).metadata
    pieces, start, size, row, first = [], 0, 0, 1, 1
    for group in range(groups.num_row_groups):
        size += groups.row_group(group).total_byte_size
        row += groups.row_group(group).num_rows
        if size >= piece_bytes or group == groups.num_row_groups - 1:
            pieces.append(Piece(name, start, group + 1, first))
            start, size, first = group + 1, 0, row
    return pieces


def _parquet_rows(path: Path, piece: Piece) -> Rows:
    import pyarrow

    file = _parquet(path)
    end = file.metadata.num_row_groups if piece.end is None else piece.end
    number = piece.first_line
    try:
        for batch in file.iter_batches(batch_size=1024, row_groups=list(range(piece.start, end))):
            for row in batch.to_pylist():
                yield number, row
                number += 1
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: broken Parquet file ({str(error).splitlines()[0]}); fetch it again") from error


def _parquet(path: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: no Parquet file ({str(error).splitlines()[0]})") from error

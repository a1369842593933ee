"""Files of rows: which parts a file has, and the JSON values of a part with the line (or row) each begins at.

.jsonl, .json (an array, or one value a line), .txt (a document a line), .csv and .tsv, all of them also as .gz or .zst,
and .parquet. A row that cannot be read is given as the ValueError that says why, without the place.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

from keju.data_prepare.corpus import Piece
from keju.data_prepare.formats.json_values import array_items, parsed
from keju.data_prepare.formats.raw_lines import (
    COMPRESSED,
    blocks,
    encoding_of,
    is_blank,
    line_before,
    line_cuts,
    text_lines,
)
from keju.data_prepare.formats.tables import Rows, csv_columns, csv_rows, tsv_rows

SUFFIXES = (".jsonl", ".json", ".txt", ".csv", ".tsv", ".parquet")


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
    if kind == ".csv":
        csv_columns(path)
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
        return csv_rows(path, text_lines(data, encoding, end=b""))
    lines = ((number, line) for number, line in text_lines(data, encoding, piece.first_line) if not is_blank(line))
    if kind == ".txt":
        return ((number, line if isinstance(line, ValueError) else {"text": line}) for number, line in lines)
    if kind == ".tsv":
        return tsv_rows(path, lines)
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
    return next(tsv_rows(path, iter(lines)))[1] if kind_of(path) == ".tsv" else parsed(lines[0][1])


def _beginning(path: Path) -> bytes:
    return next(blocks(path), b"").removeprefix(b"\xef\xbb\xbf").lstrip()


def _begins_array(path: Path) -> bool:
    return _beginning(path).startswith(b"[")


def _is_one_object(path: Path) -> bool:
    """Whether an object is spread over lines: its first line is a bracket alone."""
    return _beginning(path).split(b"\n", 1)[0].strip() == b"{"


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

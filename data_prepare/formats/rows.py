"""Files of rows: which parts a file has, and the JSON values of a part with the line (or row) each begins at.

.jsonl or .ndjson, .json (an array, or one value a line), .txt (a document a line), .csv and .tsv, all of them also as
.gz, .zst or .xz, .parquet and .arrow. A row that cannot be read is given as the UserError that says why, without the
place.
"""

from __future__ import annotations

import codecs
from collections import deque
from pathlib import Path
from typing import Any

from keju.data_prepare.corpus import Piece
from keju.data_prepare.formats.tables import Rows, csv_columns, csv_rows, filled_lines, tsv_rows
from keju.data_prepare.raw_files import check_encoding, encoding_of, line_before, line_pieces
from keju.errors import UserError
from keju.records.json_text import array_rows, parsed
from keju.records.opening import BEGINNING, begins_array, decoded, packing_of, read_bytes
from keju.records.shards import TABLES
from keju.records.tables import parquet_file, table_rows

SUFFIXES = (".jsonl", ".ndjson", ".json", ".txt", ".csv", ".tsv", *TABLES)


def kind_of(path: Path) -> str:
    """The suffix without that of compression, such as ".jsonl" (of .ndjson, too); "" if such files are not read."""
    packing = packing_of(path)
    suffix = Path(path.stem if packing else path.name).suffix.lower()
    if suffix not in SUFFIXES or (packing and suffix in TABLES):
        return ""
    return ".jsonl" if suffix == ".ndjson" else suffix


def pieces_of(path: Path, name: str, piece_bytes: int) -> list[Piece]:
    """Parts of a file of about so many bytes, where it can be cut: at lines, or at a Parquet file's row groups.

    Raises UserError "file: ..." for a file that as a whole is not what its name says.
    """
    kind = kind_of(path)
    if path.stat().st_size == 0:
        return []
    if kind == ".parquet":
        return _row_groups(path, name, piece_bytes)
    if kind == ".arrow":
        return [Piece(name)]
    check_encoding(path)
    if kind == ".csv":
        csv_columns(path)
    if kind == ".json" and _is_one_object(path):
        raise UserError(f"{path}: one JSON object; expected an array of records, or one record a line")
    if packing_of(path) or kind == ".csv" or (kind == ".json" and begins_array(path)):
        return [Piece(name)]
    return line_pieces(path, name, piece_bytes)


def rows_of(path: Path, piece: Piece) -> Rows:
    """The rows of one piece, numbered by their line in the file, counted from 1 (Parquet: by their row)."""
    kind = kind_of(path)
    if kind == ".parquet":
        end = parquet_file(path).metadata.num_row_groups if piece.end is None else piece.end
        return table_rows(path, range(piece.start, end), piece.first_line)
    if kind == ".arrow":
        return table_rows(path)
    if kind == ".json" and begins_array(path):
        return array_rows(path, encoding_of(path))
    if kind == ".csv":
        return csv_rows(path, piece)
    lines = filled_lines(path, piece)
    if kind == ".txt":
        return ((number, line if isinstance(line, UserError) else {"text": line}) for number, line in lines)
    if kind == ".tsv":
        return tsv_rows(path, lines)
    return ((number, line if isinstance(line, UserError) else parsed(line)) for number, line in lines)


def row_before(path: Path, piece: Piece) -> Any:
    """The row before a piece, None where the piece is the first or that row cannot be read."""
    if piece.start == 0:
        return None
    if kind_of(path) == ".parquet":
        rows = deque(table_rows(path, [piece.start - 1]), maxlen=1)
        return rows[0][1] if rows else None
    line = decoded(line_before(path, piece.start), encoding_of(path))
    if isinstance(line, UserError) or not line:
        return None
    # The line with the names of a table is no row.
    return next(tsv_rows(path, iter([(0, line)])), (0, None))[1] if kind_of(path) == ".tsv" else parsed(line)


def _is_one_object(path: Path) -> bool:
    """Whether an object is spread over lines: its first line is a bracket alone."""
    beginning = read_bytes(path, BEGINNING).removeprefix(codecs.BOM_UTF8).lstrip()
    return beginning.split(b"\n", 1)[0].strip() == b"{"


def _row_groups(path: Path, name: str, piece_bytes: int) -> list[Piece]:
    """Pieces whose `start` and `end` count row groups, and whose `first_line` counts rows."""
    groups = parquet_file(path).metadata
    pieces, start, size, row, first = [], 0, 0, 1, 1
    for group in range(groups.num_row_groups):
        size += groups.row_group(group).total_byte_size
        row += groups.row_group(group).num_rows
        if size >= piece_bytes or group == groups.num_row_groups - 1:
            pieces.append(Piece(name, start, group + 1, first))
            start, size, first = group + 1, 0, row
    return pieces

"""Tables: .csv with quotes and a row of field names; .tsv without quotes, whose lines without such a row rank texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keju.data_prepare.corpus import Piece
from keju.data_prepare.formats.layouts import KNOWN_FIELDS
from keju.data_prepare.raw_csv import csv_cells
from keju.data_prepare.raw_files import numbered_texts
from keju.errors import UserError
from keju.records.json_text import parsed

# Columns of a table whose cells are JSON where they begin with a bracket.
NESTED = {"messages", "conversations", "conversation", "history", "answers", "instances", "chat"}
# The prompt of a line that only ranks texts. It is true of any text.
UNPROMPTED = "请写一段文字。"

Rows = Iterator[tuple[int, Any]]


def filled_lines(path: Path, piece: Piece) -> Rows:
    """The lines of a piece that are not blank."""
    return (line for line in numbered_texts(path, piece) if isinstance(line[1], UserError) or line[1].strip())


def tsv_columns(path: Path) -> list[str]:
    """The names in the first line, or [] if they are no names of fields: then each line is texts, best first."""
    first = next((line for _, line in filled_lines(path, Piece(""))), "")
    names = [name.strip() for name in first.split("\t")] if isinstance(first, str) else []
    return names if _are_columns(names) else []


def _are_columns(names: list[str]) -> bool:
    return len(set(names)) == len(names) and any(fields <= set(names) for fields in KNOWN_FIELDS)


def tsv_rows(path: Path, lines: Rows) -> Rows:
    """The rows of lines that are not blank; quotes are characters as any other."""
    columns = tsv_columns(path)
    for number, line in lines:
        if isinstance(line, UserError):
            yield number, line
            continue
        cells = line.split("\t")
        if not columns:
            yield number, {"instruction": UNPROMPTED, "output": cells}
        elif [cell.strip() for cell in cells] != columns:
            yield number, _table_row(columns, cells)


def csv_columns(path: Path) -> list[str]:
    """The names in the first row. Raises UserError if they are no fields of records."""
    first = next(csv_cells(numbered_texts(path, Piece(""), ends=b"\n")), (1, []))[1]
    names = [] if isinstance(first, UserError) else [name.strip() for name in first]
    if not _are_columns(names):
        example = "prompt,completion or instruction,input,output or text"
        raise UserError(f"{path}:1: the first row must name known fields, each once, such as {example}")
    return names


def csv_rows(path: Path, piece: Piece) -> Rows:
    """The rows of a whole file. Line breaks within a cell stay as they are."""
    columns = csv_columns(path)
    rows = csv_cells(numbered_texts(path, piece, ends=b"\n"))
    next(rows, None)
    for number, cells in rows:
        yield number, cells if isinstance(cells, UserError) else _table_row(columns, cells)


def _table_row(columns: list[str], cells: list[str]) -> Any:
    if len(cells) != len(columns):
        return UserError(f"{len(cells)} cells, but the first row names {len(columns)} columns")
    row: dict[str, Any] = {name: cell for name, cell in zip(columns, cells, strict=True) if cell != ""}
    for name in NESTED & row.keys():
        if row[name].startswith(("[", "{")):
            row[name] = parsed(row[name])
            if isinstance(row[name], UserError):
                return UserError(f'"{name}": {row[name]}')
    return row

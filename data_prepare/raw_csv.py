"""Raw CSV, in which a quote that is not closed costs one row and not the rest of the file."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from keju.data_prepare.corpus import BadRow, Piece
from keju.data_prepare.raw_files import numbered_texts
from keju.errors import UserError

MAX_ROW_LINES = 100_000  # of one row, by line breaks inside quotes
MAX_CELL = 1 << 24  # characters

NumberedLine = tuple[int, str | UserError]


def csv_rows(folder: Path, piece: Piece, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]] | BadRow]:
    """("file:line", fields by column) of every row of a whole file that begins with the line of its columns.

    A row of other columns is a BadRow; see `csv_cells`. Raises UserError if the file begins with something else than
    its columns.
    """
    rows = csv_cells(numbered_texts(folder / piece.path, piece))
    first, header = next(rows, (1, []))
    if first != 1 or isinstance(header, UserError) or tuple(header) != columns:
        found = header if isinstance(header, UserError) else repr(",".join(header)[:80])
        raise UserError(f"{folder / piece.path}:1: expected the columns {','.join(columns)}, found {found}")
    for number, cells in rows:
        where = f"{piece.path}:{number}"
        if isinstance(cells, UserError):
            yield BadRow(where, str(cells))
        elif len(cells) != len(columns):
            found = f"{len(cells)} cells instead of {len(columns)} ({','.join(columns)})"
            yield BadRow(where, f"{found}; a text with a comma or a quote must be in quotes")
        else:
            yield where, dict(zip(columns, cells, strict=True))


def csv_cells(lines: Iterator[NumberedLine]) -> Iterator[tuple[int, list[str] | UserError]]:
    """(line where a row begins, its cells or what is wrong with it) of every row that is not blank.

    A row may go over lines inside quotes. Where it is broken, reading goes on at its second line. A row that holds a
    line that is no text is left out with it.
    """
    csv.field_size_limit(MAX_CELL)
    taken: list[NumberedLine] = []  # for the row that is being read
    broken: list[NumberedLine] = []  # those of them that are no text
    waiting: deque[NumberedLine] = deque()  # that were taken for a row that is none

    def texts() -> Iterator[str]:
        while len(taken) < MAX_ROW_LINES and (line := waiting.popleft() if waiting else next(lines, None)):
            taken.append(line)
            if isinstance(line[1], UserError):
                broken.append(line)
                yield "\n"
            else:
                yield line[1] + "\n"

    reader = csv.reader(texts(), strict=True)
    while True:
        taken.clear()
        broken.clear()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield taken[0][0], UserError(_reason(str(error)))
            waiting.extendleft(reversed(taken[1:]))
            reader = csv.reader(texts(), strict=True)
            continue
        if cells is None:
            return
        if broken:
            yield from broken
        elif any(map(str.strip, cells)):
            yield taken[0][0], cells


def _reason(message: str) -> str:
    if "unexpected end of data" in message:
        return (
            f"a quote is not closed within {MAX_ROW_LINES} lines, nor before the end of the file; double it or close it"
        )
    return f"malformed CSV ({message})"

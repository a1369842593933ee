"""Raw CSV, in which a quote that is not closed costs one row and not the rest of the file."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from keju.data_prepare.corpus import BadRow, Piece
from keju.data_prepare.raw_files import Line, text_lines

MAX_ROW_LINES = 200  # of one row, by line breaks inside quotes


def csv_rows(folder: Path, piece: Piece, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]] | BadRow]:
    """("file:line", fields by column) of every row of a whole file that begins with the line of its columns.

    A row may go over lines inside quotes. One that is broken, or has other columns, is a BadRow of its first line, and
    reading goes on at the second. Raises ValueError if the file begins with something else than its columns.
    """
    source = text_lines(folder, piece)
    header = next(source, ("", ""))
    if isinstance(header, BadRow) or tuple(header[1].replace('"', "").split(",")) != columns:
        found = header.reason if isinstance(header, BadRow) else repr(header[1][:80])
        raise ValueError(f"{folder / piece.path}:1: expected the columns {','.join(columns)}, found {found}")
    waiting: deque[Line | BadRow] = deque()
    while line := waiting.popleft() if waiting else next(source, None):
        if isinstance(line, BadRow):
            yield line
            continue
        taken = [line]
        try:
            fields = next(csv.reader(_texts(taken, waiting, source), strict=True))
            if fields and len(fields) != len(columns):
                found = f"{len(fields)} fields instead of {len(columns)} ({','.join(columns)})"
                raise csv.Error(f"{found}; a text with a comma or a quote must be in quotes")
            if fields:
                yield line[0], dict(zip(columns, fields, strict=True))
        except csv.Error as error:
            yield BadRow(line[0], _reason(str(error)))
            waiting.extendleft(reversed(taken[1:]))


def _texts(taken: list, waiting: deque, source: Iterator[Line | BadRow]) -> Iterator[str]:
    """The lines of one row as the csv module asks for them; each is added to `taken`, of which the first is there."""
    yield taken[0][1] + "\n"
    while len(taken) < MAX_ROW_LINES and (line := waiting.popleft() if waiting else next(source, None)):
        taken.append(line)
        if isinstance(line, BadRow):
            return
        yield line[1] + "\n"


def _reason(message: str) -> str:
    if "unexpected end of data" in message:
        return (
            f"a quote is not closed within {MAX_ROW_LINES} lines, nor before the end of the file; double it or close it"
        )
    return f"broken CSV: {message}"

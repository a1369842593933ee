"""Raw JSON: one object a line, or an array (or one object) a file; fields that are what they should be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keju.data_prepare.corpus import BadRow, Piece
from keju.data_prepare.raw_files import encoding_of, text_lines, whole_text
from keju.errors import UserError
from keju.records.json_text import array_rows, parsed
from keju.records.opening import begins_array

Row = tuple[str, dict[str, Any]]  # ("file:line", object)


def json_lines(folder: Path, piece: Piece) -> Iterator[Row | BadRow]:
    """The object of every line that is not blank."""
    for line in text_lines(folder, piece):
        if isinstance(line, BadRow):
            yield line
        elif line[1].strip():
            yield _object(line[0], parsed(line[1]))


def json_file(folder: Path, piece: Piece) -> Iterator[Row | BadRow]:
    """The objects of an array, each with the line it begins at; a file of one object is an array of one.

    Raises UserError where its JSON is broken so that what follows cannot be told.
    """
    path = folder / piece.path
    if not begins_array(path):
        text = whole_text(path)
        value = parsed(text) if isinstance(text, str) else text
        if isinstance(value, UserError):
            raise UserError(f"{path}: {value}")
        yield _object(f"{piece.path}:1", value)
        return
    for number, value in array_rows(path, encoding_of(path)):
        yield _object(f"{piece.path}:{number}", value)


def _object(where: str, value: Any) -> Row | BadRow:
    if isinstance(value, UserError):
        return BadRow(where, str(value))
    if not isinstance(value, dict):
        return BadRow(where, f"expected a JSON object, found {type(value).__name__}")
    return where, value


def text_field(row: dict[str, Any], name: str) -> str:
    """A field that is a text, "" where it is absent or null. Raises UserError without the place for anything else."""
    return checked_text("" if row.get(name) is None else row[name], f'"{name}"')


def checked_text(value: Any, name: str) -> str:
    """`value` if it is a text that can be written as UTF-8, without spaces around it. Raises UserError."""
    if not isinstance(value, str):
        raise UserError(f"{name} is no text but {type(value).__name__}")
    try:  # JSON can escape half of a surrogate pair
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{name} holds a broken character (half of a surrogate pair)") from error
    if "\0" in value:
        raise UserError(f"a NUL character in {name}")
    return value.strip()

"""The texts of evaluation sets in .csv, .json and .jsonl files, whatever their layout: every string of every row."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keju.data_prepare.raw_files import check_encoding, whole_text
from keju.errors import UserError

SUFFIXES = (".csv", ".json", ".jsonl")


def evaluation_texts(folder: Path) -> Iterator[tuple[str, str]]:
    """("file:row", text) of all files below `folder`, by path. The file begins with the folder's name.

    The row is a line of .csv and .jsonl (where it ends), or the number of an element of a JSON array, from 1.
    Raises UserError if the folder has no such file, or one that cannot be read as what its name says.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name one with the files of evaluation sets", option="decontaminate")
    paths = sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES and path.is_file())
    if not paths:
        raise UserError(f"{folder} has no file that ends in {', '.join(SUFFIXES)}", option="decontaminate")
    for path in paths:
        name = f"{folder.resolve().name}/{path.relative_to(folder).as_posix()}"
        check_encoding(path)
        content = whole_text(path)
        if isinstance(content, UserError):
            raise UserError(f"{path}: {content}")
        rows = _csv_rows(path, content) if path.suffix == ".csv" else _json_rows(path, content)
        for number, row in rows:
            for text in _strings(row):
                yield f"{name}:{number}", text


def _csv_rows(path: Path, content: str) -> Iterator[tuple[int, Any]]:
    reader = csv.reader(content.splitlines(keepends=True))
    try:
        for cells in reader:
            yield reader.line_num, cells
    except csv.Error as error:
        raise UserError(
            f"{path}:{reader.line_num}: is no line of CSV ({error}); mend it or take the file away"
        ) from error


def _json_rows(path: Path, content: str) -> Iterator[tuple[int, Any]]:
    """The elements of an array, also of the array in {"version": ..., "data": [...]}, or the lines of JSON lines."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        yield from _json_lines(path, content)
        return
    if isinstance(value, dict):
        value = next((inside for inside in value.values() if isinstance(inside, list)), [value])
    yield from enumerate(value if isinstance(value, list) else [value], start=1)


def _json_lines(path: Path, content: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}:{number}: is no JSON ({error}); mend it or take the file away") from error


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for inside in value.values() if isinstance(value, dict) else value:
            yield from _strings(inside)

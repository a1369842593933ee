"""Files of rows for others, written row by row and whole or not there: .jsonl, .json, .csv, .parquet, .txt."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from keju.errors import UserError
from keju.records.writing import whole_file

Row = dict[str, Any]
Write = Callable[[Row], None]
SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".csv", ".parquet", ".txt")
ROWS_A_GROUP = 1024


@contextlib.contextmanager
def row_file(path: Path, columns: Mapping[str, str]) -> Iterator[Write]:
    """A function that writes a row; the file is there when the block ends without an error.

    columns: every field that rows may have, with what it holds: "text", "flag" (true or false), "texts" (a list),
        "turns" ([{"role", "content"}]), "conversation" ([{"from", "value"}]), "history" ([[text, text]]) or "answers"
        ([{"answer", "score"}]). The function raises UserError for a row that such a file cannot hold.
    Raises UserError where no such file is written, or not with these columns.
    """
    suffix = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), None)
    if suffix is None:
        raise UserError(f"{path}: the name must end in {', '.join(SUFFIXES)}")
    if suffix == ".txt" and list(columns) != ["text"]:
        raise UserError(f"{path}: a .txt file holds texts only, a line each")
    with whole_file(path) as aside:
        if suffix == ".parquet":
            with _parquet(aside, columns) as write:
                yield write
        else:
            with _opened(aside, suffix) as file, _WRITERS[suffix.split(".")[1]](file, columns) as write:
                yield write


@contextlib.contextmanager
def _opened(path: Path, suffix: str) -> Iterator[IO[str]]:
    with contextlib.ExitStack() as stack:
        file: Any = stack.enter_context(path.open("wb"))
        if suffix.endswith(".gz"):  # without name and time, so that the same rows give the same bytes
            file = stack.enter_context(gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0))
        elif suffix.endswith(".zst"):
            try:
                import zstandard
            except ModuleNotFoundError as error:
                raise UserError(".zst files need the package zstandard: pip install zstandard") from error
            file = stack.enter_context(zstandard.ZstdCompressor(write_checksum=True).stream_writer(file, closefd=False))
        yield stack.enter_context(io.TextIOWrapper(file, encoding="utf-8", newline=""))


@contextlib.contextmanager
def _jsonl(file: IO[str], columns: Mapping[str, str]) -> Iterator[Write]:
    yield lambda row: file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n") and None


@contextlib.contextmanager
def _json(file: IO[str], columns: Mapping[str, str]) -> Iterator[Write]:
    begin = "[\n"

    def write(row: Row) -> None:
        nonlocal begin
        file.write(begin + json.dumps(row, ensure_ascii=False, allow_nan=False))
        begin = ",\n"

    yield write
    file.write("\n]\n" if begin != "[\n" else "[]\n")


@contextlib.contextmanager
def _csv(file: IO[str], columns: Mapping[str, str]) -> Iterator[Write]:
    # Columns of lists stay away: no row with a value there is written.
    names = [name for name, kind in columns.items() if kind in ("text", "flag")]
    writer = csv.writer(file, quoting=csv.QUOTE_ALL)
    if not names:
        raise UserError("cells of a .csv file hold texts, not lists of turns; write .jsonl or .parquet")
    writer.writerow(names)

    def write(row: Row) -> None:
        cells = [row.get(name, "") for name in names]
        nested = [name for name, value in row.items() if isinstance(value, list | dict) or name not in columns]
        if nested:
            raise UserError(f'a cell of a .csv file cannot hold "{nested[0]}"; write .jsonl or .parquet')
        if any(isinstance(cell, str) and "\0" in cell for cell in cells):
            raise UserError("a cell of a .csv file cannot hold a zero byte; write .jsonl or .parquet")
        writer.writerow([str(cell).lower() if isinstance(cell, bool) else cell for cell in cells])

    yield write


@contextlib.contextmanager
def _txt(file: IO[str], columns: Mapping[str, str]) -> Iterator[Write]:
    def write(row: Row) -> None:
        if "\n" in row["text"] or row["text"].endswith("\r") or row["text"].startswith("\ufeff"):
            raise UserError("a line of a .txt file cannot hold a text of several lines; write .jsonl")
        file.write(row["text"] + "\n")

    yield write


@contextlib.contextmanager
def _parquet(path: Path, columns: Mapping[str, str]) -> Iterator[Write]:
    import pyarrow
    import pyarrow.parquet

    text = pyarrow.string()
    types = {
        "text": text,
        "flag": pyarrow.bool_(),
        "texts": pyarrow.list_(text),
        "turns": pyarrow.list_(pyarrow.struct({"role": text, "content": text})),
        "conversation": pyarrow.list_(pyarrow.struct({"from": text, "value": text})),
        "history": pyarrow.list_(pyarrow.list_(text)),
        "answers": pyarrow.list_(pyarrow.struct({"answer": text, "score": pyarrow.float64()})),
    }
    schema = pyarrow.schema({name: types[kind] for name, kind in columns.items()})
    waiting: list[Row] = []
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:

        def flush() -> None:
            if waiting:
                writer.write_table(pyarrow.Table.from_pylist(waiting, schema=schema))
                waiting.clear()

        def write(row: Row) -> None:
            for name, value in row.items():
                if name not in columns:
                    raise UserError(f'a .parquet file of this layout has no column "{name}"; write .jsonl')
                if isinstance(value, str) != (columns[name] == "text"):
                    raise UserError(f'the column "{name}" of a .parquet file holds {columns[name]}; write .jsonl')
                _check_fields(name, value, types[columns[name]])
            waiting.append(row)
            if len(waiting) == ROWS_A_GROUP:
                flush()

        yield write
        flush()


def _check_fields(name: str, value: Any, kind: Any) -> None:
    """Raises UserError for a field of objects in a list that the type of their column does not have."""
    if not isinstance(value, list) or not value or not isinstance(value[0], dict):
        return
    known = {field.name for field in kind.value_type}
    more = next((field for item in value for field in item if field not in known), None)
    if more is not None:
        raise UserError(f'"{name}" of a .parquet file has no field "{more}"; write .jsonl')


_WRITERS = {"jsonl": _jsonl, "json": _json, "csv": _csv, "txt": _txt}

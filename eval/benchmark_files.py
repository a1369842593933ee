"""The files of benchmarks, read as people download them: nothing is renamed, converted or guessed."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keju.errors import UserError
from keju.records.reading import json_lines, row_value


class BadRow(UserError):
    """What is wrong with a row; whoever reads the file knows where it stands."""


@dataclass(frozen=True)
class Row:
    """A question as its file has it. group: its subject, where a benchmark has subjects. where: "file:line"."""

    where: str
    fields: Mapping[str, Any]
    group: str = ""

    def text(self, name: str) -> str:
        """The text in a field. Raises BadRow where it is missing, no text, or blank."""
        value = self.fields.get(name)
        if not isinstance(value, str) or not value.strip():
            raise BadRow(f'"{name}" must be a text')
        return value

    def one_of(self, name: str, known: Sequence[str]) -> int:
        """The place of the field's value in `known`; numbers count as their digits. Raises BadRow for another value."""
        value = self.fields.get(name)
        if not isinstance(value, (str, int)) or isinstance(value, bool) or str(value) not in known:
            raise BadRow(f'"{name}" is {json.dumps(value, ensure_ascii=False)}, not one of {", ".join(known)}')
        return list(known).index(str(value))


class Files:
    """The folder of one benchmark, and what happens to its bad rows.

    data_dir: `--data_dir`. names: folders in it that the benchmark may lie in, the first that is there counts; without
    any, data_dir itself. on_bad_row: "error" raises UserError with `file:line`; "skip" leaves the row out and keeps
    the line in `rejected`. subjects: those that are read (None: all).
    """

    def __init__(
        self,
        data_dir: str | Path,
        names: Sequence[str] = (),
        on_bad_row: str = "error",
        subjects: Collection[str] | None = None,
    ) -> None:
        if on_bad_row not in ("error", "skip"):
            raise UserError(f"{on_bad_row}: choose from error, skip", option="on_bad_row")
        root = Path(data_dir).expanduser()
        if not root.is_dir():
            raise UserError(f"{root} does not exist", option="data_dir")
        self.folder = next((root / name for name in names if (root / name).is_dir()), root)
        self.on_bad_row = on_bad_row
        self.subjects = subjects
        self.rejected: list[str] = []

    def reject(self, where: str | Path, message: str | Exception, option: str | None = None) -> None:
        """Raises UserError naming the place, or counts it."""
        if self.on_bad_row == "error":
            raise UserError(f"{where}: {message}", option=option)
        self.rejected.append(f"{where}: {message}")

    def path(self, *names: str) -> Path:
        """The first of `names` that is a file. Raises UserError when none is."""
        for name in names:
            if (self.folder / name).is_file():
                return self.folder / name
        others = f" (nor {', '.join(names[1:])})" if len(names) > 1 else ""
        raise UserError(f"{self.folder / names[0]} does not exist{others}", option="data_dir")

    def json_lines(self, path: Path) -> Iterator[Row]:
        """A row for each line, which must be a JSON object."""
        for number, line in json_lines(path):
            where = f"{path}:{number}"
            try:
                fields = row_value(line)
                if not isinstance(fields, dict):
                    raise BadRow("expected a JSON object")
            except ValueError as error:
                self.reject(where, error)
            else:
                yield Row(where, fields)

    def json(self, path: Path) -> Any:
        """The whole file as one JSON value. Raises UserError: there is no row to skip."""
        try:
            return json.loads(_text(path))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: malformed JSON ({error})") from error

    def csv(self, path: Path, columns: Sequence[str], *, header: bool = True, group: str = "") -> Iterator[Row]:
        """A row for each record; cells are text, whatever they look like ("None", "NA"), and may hold line breaks.

        columns: those that a header must have, or all of them where the file has no header.
        """
        with path.open(encoding="utf-8-sig", newline="") as file:
            records = csv.reader(file, strict=True)
            names = next(records, []) if header else list(columns)
            if missing := [name for name in columns if name not in names]:
                raise UserError(f"{path}:1: there is no column {', '.join(missing)}")
            last_line = records.line_num
            while True:
                where = f"{path}:{last_line + 1}"
                try:
                    cells = next(records, None)
                except (csv.Error, UnicodeDecodeError) as error:
                    raise UserError(f"{where}: malformed CSV ({error})") from error
                last_line = records.line_num
                if cells is None:
                    return
                if len(cells) == len(names):
                    yield Row(where, dict(zip(names, cells, strict=True)), group)
                elif cells:
                    self.reject(where, f"{len(cells)} cells instead of {len(names)}")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from error

"""Files to which rows of JSON are appended as they come, and in whose last line a kill may leave half a row."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

from keju.errors import UserError
from keju.records.writing import whole_file

BLOCK = 1 << 16  # bytes


class Journal:
    """One JSON object a line; lines end with "\\n" alone, so that a text may hold U+2028 and what else splits lines.

    A kill costs the row that it cut and no other: where the last line is no object of JSON it counts as not there, and
    goes when the next row comes. Several processes may append at a time.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds a row at the end, and creates the file and its folder where they are missing.

        Raises:
            OSError: it cannot be written.
            TypeError: one of its values is none of JSON.
        """
        self.extend([row])

    def extend(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds rows at the end, with no others between them; otherwise as `append`."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            with contextlib.suppress(OSError):  # some network file systems cannot lock
                fcntl.flock(file, fcntl.LOCK_EX)  # nobody takes half of our rows for what a kill has left
            _end_last_line(file)
            file.writelines(map(_line, rows))

    def read(self, *, on_bad_line: Literal["error", "skip"] = "error") -> Iterator[dict[str, Any]]:
        """The rows in their order; none where there is no file.

        Args:
            on_bad_line: whether any other line than the last one that is no object of JSON is an error, or left out.

        Raises:
            UserError: "file:line: not JSON", for such a line.
        """
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                row = _row(line)
                if not isinstance(row, ValueError):
                    yield row
                elif on_bad_line == "error" and next(file, None) is not None:
                    raise UserError(f"{self.path}:{number}: not JSON: {row}") from row

    def rewrite(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Puts rows, which may come from `read`, in the place of all; a kill leaves the old ones or the new ones."""
        with whole_file(self.path) as aside, aside.open("wb") as file:
            file.writelines(map(_line, rows))


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _row(line: bytes) -> dict[str, Any] | ValueError:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return ValueError(str(error))
    return row if isinstance(row, dict) else ValueError("no object")


def _end_last_line(file: BinaryIO) -> None:
    """Where it has no end, it gets one; where it is no row, it is cut off."""
    size = file.seek(0, os.SEEK_END)
    last, start = b"", size
    while start and b"\n" not in last[:-1]:
        start = max(0, size - 2 * max(len(last), BLOCK))
        file.seek(start)
        last = file.read(size - start)
    last = last[last.rfind(b"\n", 0, -1) + 1 :]
    if last and isinstance(_row(last), ValueError):
        file.truncate(size - len(last))
    elif last and not last.endswith(b"\n"):
        file.write(b"\n")

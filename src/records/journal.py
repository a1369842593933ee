"""Files to which a run appends rows of JSON, and in whose last line a kill may leave half a row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from keju.errors import UserError


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Appends one object a line. After a kill, `read_rows` and `write_jsonl` bring the file into order first."""
    with path.open("a", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file that was appended to; none where there is none.

    What a kill left of the last line is passed over. Raises UserError `file:line` for any other line that is no
    object of JSON.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:  # lines end with "\n" alone: a text may hold U+2028 and what else splits lines
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise UserError("no object")
            except (ValueError, RecursionError) as error:
                if not line.endswith(b"\n"):  # the last one
                    return
                raise UserError(f"{path}:{number}: not JSON: {error}") from error
            yield row

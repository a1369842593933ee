"""Write files and folders that are either whole or not there."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write one JSON object a line, UTF-8, creating the folder; returns the number of rows.

    The rows go to a file beside `path` that takes its name only when complete, so that a full disk or a kill never
    leaves half a file, nor destroys the one that was there. Raises ValueError for NaN and infinite numbers.
    """
    return _write_whole(path, (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def write_json(path: str | Path, value: Any) -> None:
    """Write one indented JSON value, as wholly as `write_jsonl` does."""
    _write_whole(path, [json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2) + "\n"])


def _write_whole(path: str | Path, parts: Iterable[str]) -> int:
    count = 0
    with whole_file(path) as aside, aside.open("w", encoding="utf-8", newline="\n") as file:
        for part in parts:
            file.write(part)
            count += 1
    return count


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """An empty file beside `path` that takes its name when the block ends, and vanishes when the block fails."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        aside.open("x").close()
        yield aside
        with aside.open("r+b") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def whole_folder(folder: str | Path, dispose: Callable[[Path], None]) -> Iterator[Path]:
    """A fresh folder beside `folder` that takes its place when the block ends, and vanishes when the block fails.

    dispose: called with the folder that was replaced, if any, which is then beside the new one.
    """
    folder = Path(folder).absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    mark = secrets.token_hex(4)
    aside, old = (folder.with_name(f".{folder.name}.{mark}.{state}") for state in ("part", "old"))
    aside.mkdir()
    try:
        yield aside
        if folder.exists():
            folder.rename(old)
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    if old.exists():
        dispose(old)

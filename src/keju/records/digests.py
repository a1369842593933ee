"""Checksums of files, which are remembered for as long as a file looks as it did."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from keju.records.writing import write_json

SETTLED = 2e9  # nanoseconds; a file that changed later than this before it is read may change again unnoticed


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def file_state(path: Path) -> list[int]:
    """What changes with a file's bytes: size, times of modification and of change in nanoseconds, inode."""
    state = path.stat()
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]


def data_digest(file: Path, memory: Path) -> str:
    """SHA-256 of a data file. memory: see `remembered`."""
    return remembered(file, memory, "sha256", file_digest)


def remembered(file: Path, memory: Path, name: str, find: Callable[[Path], Any]) -> Any:
    """What `find` finds in a data file (a value of JSON), called `name`.

    memory: a folder that keeps it for as long as `file_state` stays the same.
    """
    before, begun = file_state(file), time.time_ns()
    known = memory / (hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:32] + ".json")
    row: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # not known, or half a file: read again
        found = json.loads(known.read_text(encoding="utf-8"))
        row = found if found["seen"] == before else {}
    if name in row:
        return row[name]
    value = find(file)
    if file_state(file) == before and begun - max(before[1:3]) > SETTLED:
        with contextlib.suppress(OSError):  # a full or read-only disk: the data are read again the next time
            write_json(known, {**row, "seen": before, name: value})
    return value

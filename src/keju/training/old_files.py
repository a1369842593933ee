"""What is deleted in the folder of a run: an older run that gives its place up."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

# In the folder of a run: the model that it starts from, where that had to be made first (keju.training.starts).
START = "start"


def but_start(entries: Iterable[Path]) -> list[Path]:
    """Without the model that a run has made to start from: a run that begins again finds it."""
    return [entry for entry in entries if entry.name != START]


def all_within(entries: Iterable[Path]) -> list[Path]:
    """Files and folders, and all that is in these; what is in a folder comes before it. Links are not followed."""
    found: list[Path] = []
    for entry in entries:
        if _is_leaf(entry):
            found.append(entry)
            continue
        for folder, folders, files in os.walk(entry, topdown=False):
            inside = (Path(folder) / name for name in (*files, *folders))
            found += [path for path in inside if _is_leaf(path)]
            found.append(Path(folder))
    return found


def delete(paths: Iterable[Path]) -> None:
    """Of `all_within`, in its order; a folder that has got something new in the meantime stays."""
    for path in paths:
        if _is_leaf(path):
            path.unlink(missing_ok=True)
        else:
            with contextlib.suppress(OSError):
                path.rmdir()


def _is_leaf(path: Path) -> bool:
    return path.is_symlink() or not path.is_dir()

"""Files and folders that are either whole or not there, written by all of Keju's stages.

What is under way has a hidden name beside the place it is for; what a kill leaves of it, `keju.records.locks` finds.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

LEFTOVER = r"\.[0-9a-f]{8}\.(part|old)"  # after "." and the name that is meant; see `hidden_names`


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write one JSON object a line, UTF-8, creating the folder; returns the number of rows.

    The rows go to a file beside `path` that takes its name only when complete, so that a full disk or a kill never
    leaves half a file, nor destroys the one that was there. Raises UserError for NaN and infinite numbers.
    """
    return _write(path, (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def write_json(path: str | Path, value: Any) -> None:
    """Write one indented JSON value, as wholly as `write_jsonl` does."""
    _write(path, [json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2) + "\n"])


def write_text(path: str | Path, text: str) -> None:
    """Write a text in UTF-8, as wholly as `write_jsonl` does."""
    _write(path, [text])


def _write(path: str | Path, parts: Iterable[str]) -> int:
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
    aside, _ = hidden_names(path)
    try:
        aside.open("x").close()
        yield aside
        with aside.open("r+b") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException as error:
        _name_full_disk(error, aside, path)
        aside.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def whole_folder(
    folder: str | Path, *, own: Callable[[Path], Iterable[Path]] = lambda folder: (), mark: str | None = None
) -> Iterator[Path]:
    """A fresh folder beside `folder` that takes its place when the block ends, and vanishes when the block fails.

    Args:
        folder: its place.
        own: which entries of a folder that is replaced are the user's own. They are carried over before it is, unless
            the new folder has entries of these names; the others go.
        mark: of `hidden_names`, where other processes write to the fresh folder too.
    """
    folder = Path(folder).absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside, old = hidden_names(folder, mark)
    aside.mkdir()
    try:
        yield aside
        if folder.exists():
            carry_over(own(folder), aside)
            old = _replace(folder, aside, old)
        else:
            aside.rename(folder)
    except BaseException as error:
        _name_full_disk(error, aside, folder)
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(aside, ignore_errors=True)
        raise
    if old.exists():
        carry_over(own(old), folder)  # what came while the others were carried over
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def whole_files(folder: str | Path) -> Iterator[Path]:
    """A fresh folder whose files take their places in `folder` when the block ends: each is the old one or whole."""
    folder = Path(folder)
    aside, _ = hidden_names(folder / "files")
    aside.mkdir(parents=True)
    try:
        yield aside
        for file in aside.iterdir():
            file.replace(folder / file.name)
    except BaseException as error:
        _name_full_disk(error, aside, folder)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def delete_folder(folder: Path) -> None:
    """Under another name first, so that a kill in the middle leaves no half of it."""
    aside, _ = hidden_names(folder)
    folder.rename(aside)
    shutil.rmtree(aside)


def _name_full_disk(error: BaseException, aside: Path, path: Path) -> None:
    """What cannot be written is `path` to people; an error of writing to an open file names none."""
    if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return
    if error.filename is None or Path(os.fsdecode(error.filename)).is_relative_to(aside):
        error.filename = str(path)


def hidden_names(path: Path, mark: str | None = None) -> tuple[Path, Path]:
    """Names beside `path` for what is to replace it and for what was replaced.

    mark: eight hexadecimal digits in them; None: drawn, so that two writers never meet.
    """
    mark = mark or secrets.token_hex(4)
    return path.with_name(f".{path.name}.{mark}.part"), path.with_name(f".{path.name}.{mark}.old")


def carry_over(entries: Iterable[Path], folder: Path) -> None:
    """Links files, and folders with what is in them, into another folder; those that it has already stay as they are.

    They are in both then, so that a kill at any moment loses none. Where there are no links they are copied.
    """
    for entry in entries:
        target = folder / entry.name
        if os.path.lexists(target):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, target, symlinks=True, copy_function=_link)
        else:
            _link(entry, target)


def _link(source: str | Path, target: str | Path, *, follow_symlinks: bool = False) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # a file system without links
        shutil.copy2(source, target, follow_symlinks=False)


def _replace(folder: Path, new: Path, old: Path) -> Path:
    """Gives `new` the name of `folder`; returns where the old one is then."""
    if _exchange(folder, new):
        return new
    folder.rename(old)
    new.rename(folder)
    return old


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two names at once, so that both are there at any moment; False where the system cannot do that."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0

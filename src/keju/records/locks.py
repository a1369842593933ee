"""One writer at a time for a file or folder, which also clears away what killed writers before it left."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from keju.errors import UserError
from keju.records.writing import LEFTOVER, carry_over


@contextlib.contextmanager
def only_writer(path: str | Path, *, own: Callable[[Path], Iterable[Path]] = lambda folder: ()) -> Iterator[None]:
    """Nobody else who asks is writing to `path` (a file or a folder, there or not) until the block ends.

    The system frees the lock when a process dies. What killed writers left beside `path` is removed; a folder that one
    of them had just moved away comes back. own: as for `whole_folder`.
    Raises UserError where another process is writing, and where nothing can be written.
    """
    path = Path(path).absolute()
    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(lock)
    except BlockingIOError:
        raise UserError(
            f"another process is writing to {path} now; choose another, or wait for it", option="output_dir"
        ) from None
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise UserError(f"nothing can be written to {path.parent} ({error.strerror})", option="output_dir") from error
    try:
        clear_leftovers(path.parent, re.escape(path.name), own=own)
        yield
    finally:
        with contextlib.suppress(OSError):  # the folder around it may be gone
            lock.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(lock: Path) -> int:
    """The descriptor of the file that holds the lock. Raises BlockingIOError where another process has it."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise
        except OSError as error:  # some network file systems cannot lock
            print(f"warning: {lock} cannot be locked ({error.strerror}); do not write twice there", file=sys.stderr)
            return descriptor
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(lock)):
                return descriptor
        os.close(descriptor)  # of a process that has removed it meanwhile


def clear_leftovers(
    folder: Path, names: str = ".+", *, own: Callable[[Path], Iterable[Path]] = lambda folder: ()
) -> None:
    """Removes what killed writers left in `folder`; what one of them had just moved away comes back.

    Only for who holds a lock: of somebody who writes there now it is taken away as well.

    Args:
        folder: where the files and folders are that they wrote.
        names: of these, a regular expression.
        own: as for `whole_folder`.
    """
    leftover = re.compile(rf"\.(?P<name>{names}){LEFTOVER}")
    matches = map(leftover.fullmatch, sorted(os.listdir(folder)))
    left = [(folder / match[0], folder / match["name"]) for match in matches if match]
    for found, path in left:
        if found.suffix != ".old":
            continue
        if not path.exists():
            found.rename(path)
        elif path.is_dir():
            carry_over(own(found), path)
    for found, _ in left:
        if found.is_dir() and not found.is_symlink():
            shutil.rmtree(found, ignore_errors=True)
        else:
            found.unlink(missing_ok=True)

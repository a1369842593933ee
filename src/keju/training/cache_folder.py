"""Where this user's caches are."""

from __future__ import annotations

import contextlib
import functools
import os
import stat
import sys
import tempfile
from pathlib import Path

# Variables of libraries that otherwise warn or fail without a home.
OTHERS = {
    "MPLCONFIGDIR": "matplotlib",
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TORCH_EXTENSIONS_DIR": "torch_extensions",
}


def cache_folder(name: str) -> Path:
    """keju/`name` in XDG_CACHE_HOME or ~/.cache; or, where there is no home that can be written, in a folder of this
    user alone in the system's temporary one."""
    given = os.environ.get("XDG_CACHE_HOME")
    root = Path(given) if given else _home_cache() or _private_folder()
    return root / "keju" / name


def warn_if_open(folder: Path) -> None:
    """Says so where every user of the machine can write to a folder whose content decides results."""
    with contextlib.suppress(OSError):
        if folder.stat().st_mode & stat.S_IWOTH:
            print(f"warning: every user can write to {folder}; what is there would be trained on", file=sys.stderr)


def give_others_a_place() -> None:
    """Where there is no home that can be written, the libraries that would write there get a folder beside ours."""
    if not os.environ.get("XDG_CACHE_HOME") and _home_cache() is None:
        for variable, name in OTHERS.items():
            os.environ.setdefault(variable, str(cache_folder(name)))


def _home_cache() -> Path | None:
    try:
        home = Path.home()
    except RuntimeError:  # a user id without an entry and without HOME
        return None
    cache = home / ".cache"
    return cache if os.access(cache if cache.exists() else home, os.W_OK | os.X_OK) else None


@functools.cache
def _private_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"keju-cache-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    state = folder.lstat()
    if stat.S_ISDIR(state.st_mode) and state.st_uid == os.getuid() and not state.st_mode & 0o022:
        return folder
    return Path(tempfile.mkdtemp(prefix="keju-cache-"))  # somebody else has made the first one

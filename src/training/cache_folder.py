"""Where this user's caches are."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def cache_folder(name: str) -> Path:
    """keju/`name` in XDG_CACHE_HOME or ~/.cache; or, where there is no home that can be written, in a folder of this
    user's in the system's temporary one. It is not made."""
    given = os.environ.get("XDG_CACHE_HOME")
    root = Path(given) if given else _home_cache() or Path(tempfile.gettempdir()) / f"keju-cache-{os.getuid()}"
    return root / "keju" / name


def _home_cache() -> Path | None:
    try:
        home = Path.home()
    except RuntimeError:  # a user id without an entry and without HOME
        return None
    cache = home / ".cache"
    return cache if os.access(cache if cache.exists() else home, os.W_OK | os.X_OK) else None

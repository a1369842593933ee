"""Which errors are the user's: those that a `raise` statement of ours chose to raise."""

from __future__ import annotations

import linecache
import traceback


def is_raised_by_us(error: BaseException) -> bool:
    """Whether a `raise` statement of keju raised `error`.

    `a, b = three_things` is a ValueError too, and a bug of ours.
    """
    if error.__traceback__ is None:
        return False
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    statement = linecache.getline(frame.f_code.co_filename, line).strip()
    package = frame.f_globals.get("__package__") or ""
    return package.partition(".")[0] == "keju" and statement.startswith("raise")

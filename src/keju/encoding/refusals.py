"""Records that cannot be encoded: said with their place, so that a stage stops there or leaves them out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from keju.errors import UserError
from keju.records.record import Record

SURROGATE = re.compile("[\ud800-\udfff]")


class Unencodable(UserError):
    """A record that makes no tokens: `--on_bad_line skip` leaves it out, as a line that is no record."""


class TooLong(UserError):
    """A record that does not fit the maximum length."""


class RunawayTemplate(UserError):
    """A chat template that takes more time or memory than any conversation needs; no record is skipped for it."""


@contextmanager
def placed(record: Record) -> Iterator[None]:
    """Puts the `file:line` of `record` in front of what is wrong with it."""
    try:
        yield
    except (Unencodable, RunawayTemplate) as error:
        raise type(error)(f"{record.where}: {error}") from error
    except (UnicodeError, TypeError) as error:
        # The tokenizers library says "TextInputSequence must be str" of such a text, others say other things.
        half = _half_pair(asdict(record))
        if half is None:
            raise
        raise Unencodable(f"{record.where}: half of a surrogate pair (U+{ord(half):04X}) is no text") from error


def _half_pair(value: Any) -> str | None:
    if isinstance(value, str):
        found = SURROGATE.search(value)
        return found[0] if found else None
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return next(filter(None, map(_half_pair, items)), None)

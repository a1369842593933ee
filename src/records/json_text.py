"""JSON as people write it: what is wrong with a text is said, and the items of an array come with their lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

_SPACE = re.compile(r"[ \t\r\n]*")


def parsed(text: str) -> Any:
    """The value of a JSON text, or a ValueError (not raised) that says what is wrong, without the place."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return ValueError(malformed(error))


def malformed(error: Exception) -> str:
    """What to say about an error of Python's JSON decoder."""
    if isinstance(error, json.JSONDecodeError):
        return f"malformed JSON ({error.msg} at column {error.colno})"
    return f"malformed JSON ({error})"


def array_items(text: str) -> Iterator[tuple[int, Any]]:
    """(line, value) of every item of a text that begins with "[". Raises json.JSONDecodeError where it is broken."""

    def skip_space(position: int) -> int:
        return _SPACE.match(text, position).end()

    decoder = json.JSONDecoder()
    position = skip_space(text.index("[") + 1)
    line, counted = 1, 0
    closed = text.startswith("]", position)
    position = skip_space(position + 1) if closed else position
    while not closed:
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError:
            raise
        except (ValueError, RecursionError) as error:  # a number or a nesting beyond Python's limits
            raise json.JSONDecodeError(str(error), text, position) from error
        yield line, value
        position = skip_space(position)
        closed = text.startswith("]", position)
        if not closed and not text.startswith(",", position):
            raise json.JSONDecodeError("Expecting ',' or ']'", text, position)
        position = skip_space(position + 1)
    if position != len(text):
        raise json.JSONDecodeError("Text after the end of the array", text, position)

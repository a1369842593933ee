"""A JSON value a line, and the items of an array of any size, of which no more than a block and an item is held."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

MAX_ITEM = 1 << 24  # characters; where an item does not end within them, it is malformed
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


def parsed(line: str) -> Any:
    """The JSON value of a line, or a ValueError that says where it is malformed."""
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        return ValueError(f"malformed JSON ({error.msg} at column {error.colno})")
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond Python's limits
        return ValueError(f"malformed JSON ({error})")


def array_items(data: Iterable[bytes], encoding: str) -> Iterator[tuple[int, Any]]:
    """(line, item) of each; an error of syntax is the last item, as a ValueError: what follows cannot be trusted."""
    window = _Window(data, encoding)
    try:
        mark = window.expect(("[",))
        if window.next_character() == "]":
            mark = window.expect(("]",))
        while mark != "]":
            window.next_character()
            begin = window.line
            yield begin, window.item()
            mark = window.expect((",", "]"))
        window.expect(("",))
    except ValueError as error:
        yield window.line, ValueError(f"{error}; the rest of the file is not read")


class _Window:
    """The part of a text that is being read. `line`: of the next character, counted from 1."""

    def __init__(self, data: Iterable[bytes], encoding: str) -> None:
        self._blocks = iter(data)
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._text, self._at = "", 0
        self.line = 1
        self._begun = False

    def _grow(self) -> bool:
        """Adds a block; False at the end of the text. Raises ValueError for bytes that are no text."""
        block = next(self._blocks, None)
        try:
            more = self._decoder.decode(block or b"", final=block is None)
        except UnicodeDecodeError as error:
            raise ValueError(f"not UTF-8 text ({error.reason})") from error
        if more and not self._begun:
            more, self._begun = more.removeprefix("\ufeff"), True
        self._text, self._at = self._text[self._at :] + more, 0
        return block is not None

    def next_character(self) -> str:
        """The next one that is no space, which stays the next; "" at the end."""
        while True:
            end = _SPACE.match(self._text, self._at).end()
            self.line += self._text.count("\n", self._at, end)
            self._at = end
            if end < len(self._text):
                return self._text[end]
            if not self._grow():
                return ""

    def expect(self, characters: tuple[str, ...]) -> str:
        """Goes past the next character, which must be one of these."""
        found = self.next_character()
        if found not in characters:
            raise ValueError(f"malformed JSON (expected {' or '.join(map(repr, characters))}, found {found!r})")
        self._at += len(found)
        return found

    def item(self) -> Any:
        """Goes past a whole value and returns it."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # The item may go on in the next block.
                if len(self._text) - self._at < MAX_ITEM and self._grow():
                    continue
                raise ValueError(f"malformed JSON ({error.msg} in the item that begins here)") from error
            except RecursionError as error:
                raise ValueError("malformed JSON (nested too deeply)") from error
            if end < len(self._text) or not self._grow():
                self.line += self._text.count("\n", self._at, end)
                self._at = end
                return value

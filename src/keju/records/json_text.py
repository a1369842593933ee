"""JSON as people write it: what is wrong with a text is said, and the items of an array come with their lines."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from keju.errors import UserError
from keju.records.opening import blocks

MAX_ITEM = 1 << 26  # characters; where an item does not end within them, it is malformed
MAX_NAMES = 16  # by which the beginning of an item is known
TAIL = 1 << 10  # characters, more than the beginning of an item has
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


def parsed(text: str) -> Any:
    """The value of a JSON text, or a UserError (not raised) that says what is wrong, without the place."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return UserError(f"malformed JSON ({error.msg} at column {error.colno})")
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond Python's limits
        return UserError(f"malformed JSON ({error})")


class BrokenArray(UserError):
    """An array that cannot be read on. line: where, counted from 1; the message does not say it."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


def array_rows(path: Path, encoding: str = "utf-8") -> Iterator[tuple[int, Any]]:
    """The items of a file's array, see `array_items`. Raises UserError "file:line: ..." where it cannot be read on."""
    try:
        yield from array_items(blocks(path), encoding)
    except BrokenArray as error:
        raise UserError(f"{path}:{error.line}: {error}") from error


def array_items(data: Iterable[bytes], encoding: str = "utf-8") -> Iterator[tuple[int, Any]]:
    """(line, value) of every item of an array of any size, of which no more than a block and an item is held.

    An item that is no JSON is a UserError in its place, and reading goes on at the next one: where a line begins as
    its own did, or, of items that share a line, where an object begins with the same name as those before it. A comma
    too many at the end, or one that is missing between two objects, loses nothing.
    Raises BrokenArray where no next item can be told, and for bytes that are no text.
    """
    window = _Window(data, encoding)
    window.expect("[")
    names: dict[str, None] = {}  # that the objects so far begin with
    while True:
        place = window.place_of_item()
        if window.next_character() == "]":
            break
        line = window.line
        try:
            value = window.item()
        except BrokenArray as error:
            if not window.go_to_item(place, names):
                raise BrokenArray(error.line, f"{error}; nothing after it can be read") from error
            yield line, UserError(str(error) if error.line == line else f"{error}, line {error.line}")
            continue
        if isinstance(value, dict) and value and len(names) < MAX_NAMES:
            names.setdefault(next(iter(value)))
        yield line, value
        mark = window.next_character()
        if mark == "{":
            continue
        if mark not in (",", "]"):
            error = window.broken("Expecting ',' or ']'")
            if not window.go_to_item(place, names):
                raise BrokenArray(error.line, f"{error}; nothing after it can be read")
            yield error.line, UserError(str(error))
        elif mark == ",":
            window.expect(",")
    window.expect("]")
    if window.next_character():
        raise window.broken("Text after the end of the array")


class _Window:
    """The part of a text that is being read. `line`: of the next character, counted from 1."""

    def __init__(self, data: Iterable[bytes], encoding: str) -> None:
        self._blocks = iter(data)
        self._encoding = encoding
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._num_bytes = 0  # of all blocks that are decoded
        self._begun = False
        self._text, self._at = "", 0
        self.line = 1
        self._line_start = 0  # in the text; before it if the line began earlier

    def next_character(self) -> str:
        """The next one that is no space, which stays the next; "" at the end."""
        while True:
            self._pass(_SPACE.match(self._text, self._at).end())
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._grow():
                return ""

    def expect(self, characters: str) -> str:
        """Goes past the next character, which must be one of these."""
        found = self.next_character()
        if not found or found not in characters:
            raise self.broken(f"Expecting {' or '.join(map(repr, characters))}")
        self._at += 1
        return found

    def place_of_item(self) -> int | None:
        """How far the item that comes next is indented; None where it is not the first of its line."""
        line = self.line
        self.next_character()
        return self._at - self._line_start if self.line > line else None

    def go_to_item(self, place: int | None, names: Collection[str]) -> bool:
        """Goes to where another item seems to begin, after the one that is next; False if there is none.

        place: of `place_of_item`. names: that objects begin with.
        """
        if place is None and not names:
            return False
        if place is None:
            quoted = "|".join(re.escape(json.dumps(name, ensure_ascii=False)) for name in names)
            start = re.compile(rf"\{{\s*(?:{quoted})\s*:")
        else:
            start = re.compile(rf"(?<=\n)[ \t]{{{place}}}(?=[{{\[])")
        self._pass(min(self._at + 1, len(self._text)))
        while not (found := start.search(self._text, self._at)):
            self._pass(max(self._at, len(self._text) - TAIL))  # the start may lie across two blocks
            if not self._grow():
                return False
        self._pass(found.end() if place is not None else found.start())
        return True

    def item(self) -> Any:
        """Goes past a whole value and returns it."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if len(self._text) - self._at >= MAX_ITEM:
                    raise self.broken(
                        f"{error.msg}, or an item of more than {MAX_ITEM >> 20} MiB", error.pos
                    ) from error
                if self._grow():
                    continue  # the item may go on in the next block
                raise self.broken(error.msg, error.pos) from error
            except (ValueError, RecursionError) as error:  # a number or a nesting beyond Python's limits
                raise self.broken(str(error)) from error
            if end < len(self._text) or not self._grow():  # a number at the end may go on as well
                self._pass(end)
                return value

    def broken(self, message: str, position: int | None = None) -> BrokenArray:
        """position: in the text; the next character where it is None."""
        position = self._at if position is None else position
        line = self.line + self._text.count("\n", self._at, position)
        line_start = self._line_start if line == self.line else self._text.rindex("\n", self._at, position) + 1
        return BrokenArray(line, f"malformed JSON ({message} at column {position - line_start + 1})")

    def _pass(self, end: int) -> None:
        if num_line_ends := self._text.count("\n", self._at, end):
            self.line += num_line_ends
            self._line_start = self._text.rindex("\n", self._at, end) + 1
        self._at = end

    def _grow(self) -> bool:
        """Adds a block; False at the end of the text."""
        block = next(self._blocks, None)
        num_waiting = len(self._decoder.getstate()[0])  # bytes of a character that the last block began
        try:
            more = self._decoder.decode(block or b"", final=block is None)
        except UnicodeDecodeError as error:
            line = self.line + self._text.count("\n", self._at) + error.object.count(b"\n", 0, error.start)
            place = f"at byte {self._num_bytes - num_waiting + error.start}"
            raise BrokenArray(line, f"not {self._encoding.upper()} text ({error.reason} {place})") from error
        if block is None:
            return False
        if more and not self._begun:
            more, self._begun = more.removeprefix("\ufeff"), True
        self._num_bytes += len(block)
        self._text, self._at, self._line_start = self._text[self._at :] + more, 0, self._line_start - self._at
        return True

"""What may reach a terminal: texts come from records, models and servers, and a terminal obeys what is in them.

An escape sequence can change the title, the clipboard, or lines that were printed before. Texts from outside are shown
through `visible`; whatever a stage prints goes through a `Terminal`, which knows only the few sequences that our own
tables and bars need.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

# Colours; showing and hiding the cursor, up, erasing the line: what Rich's tables and bars write.
KNOWN = re.compile(r"\x1b\[(?:[0-9;:]*m|\?25[lh]|[0-9]*[AK])")
# Controls but for tab, line feed and carriage return; and what makes text run backwards (CVE-2021-42574).
CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """A text from outside with its controls written out, as \\x1b. Tabs and line ends stay."""
    return CONTROLS.sub(_escaped, text.replace("\r\n", "\n").replace("\r", "\\r"))


def without_known(text: str) -> str:
    """What was printed, as a log has it: without colours and movements, and with other controls written out."""
    return CONTROLS.sub(_escaped, KNOWN.sub("", text))


def fits(text: str, stream: TextIO) -> bool:
    """Whether the stream's encoding has all of these characters."""
    try:
        text.encode(stream.encoding or "utf-8")  # None: no bytes are made
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


class ReaderGone(BaseException):
    """Nobody reads any more what is printed, as behind `| head -1`. No Exception: it ends a stage, whatever it does."""


class Terminal(io.TextIOBase):
    """A stream that writes to `stream` what is safe there, and what its encoding lacks as \\u escapes.

    Raises ReaderGone, once, where a pipe is closed at its other end; BrokenPipeError is what sockets raise as well.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    @property
    def encoding(self) -> str:
        return self.stream.encoding

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    def write(self, text: str) -> int:
        with self._heard():
            if CONTROLS.search(text) is None:
                self.stream.write(text)
                return len(text)
            end = 0
            for known in KNOWN.finditer(text):
                self.stream.write(CONTROLS.sub(_escaped, text[end : known.start()]) + known[0])
                end = known.end()
            self.stream.write(CONTROLS.sub(_escaped, text[end:]))
        return len(text)

    def flush(self) -> None:
        with self._heard():
            self.stream.flush()

    @contextmanager
    def _heard(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())  # else what is still in the buffer raises again as Python ends
            os.close(nowhere)
            raise ReaderGone from error

"""What the terminal shows also goes to a log file, without progress bars and colours."""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
from pathlib import Path
from typing import TextIO

from keju.training.terminal import without_known

CLEAR_LINE = "\r\x1b[K"


class LogFile:
    """Whole lines, appended. When the disk refuses them the run goes on without a log, and says so once."""

    def __init__(self, path: Path):
        self.path = path
        self._file = path.open("a", encoding="utf-8")
        self._lock = threading.Lock()
        self.broken = False

    def fileno(self) -> int:
        return self._file.fileno()

    def write_line(self, line: str) -> None:
        """Appends one line. What a carriage return overwrote on the terminal is left out."""
        line = without_known(line.rstrip("\r").rpartition("\r")[2])
        with self._lock:
            if self.broken:
                return
            try:
                self._file.write(line + "\n")
                self._file.flush()
            except OSError as error:
                self.broken = True
                sys.__stderr__.write(f"warning: {self.path} can no longer be written: {error.strerror}\n")

    def close(self) -> None:
        try:
            self._file.close()
        except OSError:  # what could not be written was reported by write_line
            self.broken = True


class Tee(io.TextIOBase):
    """A stream that writes to `terminal` and, line by line, to `log`."""

    bar_is_drawn = False  # set by Progress: the terminal's last line is a bar, to be wiped before other output

    def __init__(self, terminal: TextIO, log: LogFile):
        self.terminal = terminal
        self.log = log
        self._line = ""

    @property
    def encoding(self) -> str:
        return self.terminal.encoding

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self.terminal.isatty()

    def fileno(self) -> int:
        return self.terminal.fileno()

    def write(self, text: str) -> int:
        if Tee.bar_is_drawn and text:
            self.show(CLEAR_LINE)
            Tee.bar_is_drawn = False
        self.show(text)
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self.log.write_line(line)
        return len(text)

    def show(self, text: str) -> None:
        """Writes to the terminal alone."""
        try:
            self.terminal.write(text)
        except OSError:  # the terminal was closed, or nobody reads the pipe any more: the log goes on
            self.terminal = open(os.devnull, "w")  # noqa: SIM115  (for as long as the process lives)

    def flush(self) -> None:
        try:
            self.terminal.flush()
        except OSError:
            self.terminal = open(os.devnull, "w")  # noqa: SIM115

    def finish(self) -> None:
        """Writes a last line that has no end yet."""
        if self._line:
            self.log.write_line(self._line)
            self._line = ""


class TerminalLog:
    """Sends sys.stdout, sys.stderr and the loggers that write to them through a Tee, until closed."""

    def __init__(self, path: Path):
        self.log = LogFile(path)
        self._before = (sys.stdout, sys.stderr)
        sys.stdout, sys.stderr = (Tee(stream, self.log) for stream in self._before)
        self._redirect(dict(zip(map(id, self._before), (sys.stdout, sys.stderr), strict=True)))

    @staticmethod
    def _redirect(streams: dict[int, TextIO]) -> None:
        """Handlers keep the stream of the moment they were made (transformers': the import)."""
        loggers = [logging.root, *logging.root.manager.loggerDict.values()]
        for logger in loggers:
            for handler in getattr(logger, "handlers", []):  # placeholders in loggerDict have none
                # Some handlers look sys.stderr up at each line and have no stream of their own.
                stream = vars(handler).get("stream")
                if isinstance(handler, logging.StreamHandler) and id(stream) in streams:
                    handler.setStream(streams[id(stream)])

    def close(self) -> None:
        tees = (sys.stdout, sys.stderr)
        for tee in tees:
            if isinstance(tee, Tee):
                tee.finish()
        self._redirect(dict(zip(map(id, tees), self._before, strict=True)))
        sys.stdout, sys.stderr = self._before
        self.log.close()

"""Files of records as streams of bytes, whether they are compressed or not."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

COMPRESSED = (".zst", ".gz")
INPUT = 1 << 14  # bytes decompressed at once: what comes out is in memory as a whole


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The (decompressed) bytes of a file. What is wrong with .gz or .zst is raised by `numbered_lines`."""
    with path.open("rb") as raw:
        if path.suffix == ".gz":
            with gzip.open(raw, "rb") as file:
                yield file
        elif path.suffix == ".zst":
            import zstandard

            with _Zst(zstandard.ZstdDecompressor(), raw) as stream, io.BufferedReader(stream, 1 << 20) as file:
                yield file
        else:
            yield raw


def read_bytes(path: Path, size: int = -1) -> bytes:
    """A whole file, or its first `size` bytes, decompressed. Raises ValueError where it is damaged."""
    try:
        with opened(path) as file:
            return file.read(size)
    except DAMAGE as error:
        raise ValueError(f"{path}: {_damage(error)}") from error


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Each line with its number from 1 and its "\\n". Raises ValueError "file:line: ..." where a file is damaged."""
    number = 0
    try:
        with opened(path) as file:
            for number, line in enumerate(file, start=1):  # noqa: B007  (the error names the line)
                yield number, line
    except DAMAGE as error:
        raise ValueError(f"{path}:{number + 1}: {_damage(error)}") from error


class Damaged(Exception):
    """Compressed bytes that are not what was written."""


DAMAGE = (Damaged, EOFError, gzip.BadGzipFile, zlib.error)


def _damage(error: Exception) -> str:
    return f"the compressed file is cut off or damaged ({str(error).rstrip('.')}); make or copy it again"


class _Zst(io.RawIOBase):
    """All frames of a zst file, one after the other; unlike zstandard's own reader it tells an end from a cut."""

    def __init__(self, decompressor, raw: BinaryIO) -> None:
        self._decompressor, self._raw = decompressor, raw
        self._frame = None
        self._input = b""
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._output:
            if not self._input:
                self._input = self._raw.read(INPUT)
            if not self._input:
                if self._frame is not None:
                    raise Damaged("it ends within a frame")
                return 0
            self._output = memoryview(self._next())
        size = min(len(buffer), len(self._output))
        buffer[:size] = self._output[:size]
        self._output = self._output[size:]
        return size

    def _next(self) -> bytes:
        import zstandard

        if self._frame is None:
            self._frame = self._decompressor.decompressobj()
        frame, data = self._frame, self._input
        self._input = b""
        try:
            output = frame.decompress(data)
        except zstandard.ZstdError as error:
            raise Damaged(error) from error
        if frame.eof:
            self._input, self._frame = frame.unused_data, None
        return output

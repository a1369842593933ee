"""Files as streams of bytes and of numbered lines, whether they are compressed or not."""

from __future__ import annotations

import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from keju.errors import UserError

COMPRESSED = (".zst", ".gz", ".xz")
BLOCK = 1 << 20
BEGINNING = 1 << 16  # bytes by which is told what a file holds
MAX_LINE = 1 << 26  # bytes; a longer line is no record, and must not fill the memory
MAX_MEMORY = 1 << 28  # bytes that decompressing may take; `xz -9` asks for a quarter of it, zstd has a limit of its own
INPUT = 1 << 10  # bytes decompressed at once: what comes out, of a few bytes each 128 KiB, is in memory as a whole


def packing_of(path: Path) -> str:
    """How a file is compressed, by its name: one of COMPRESSED, or ""."""
    suffix = path.suffix.lower()
    return suffix if suffix in COMPRESSED else ""


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The (decompressed) bytes of a file. What is wrong with compressed ones is raised by those who read: `DAMAGE`."""
    packing = packing_of(path)
    with path.open("rb") as raw:
        if packing == ".gz":
            with gzip.open(raw, "rb") as file:
                yield file
        elif packing:
            with _XZ(raw) if packing == ".xz" else _Zst(raw) as stream, io.BufferedReader(stream, BLOCK) as file:
                yield file
        else:
            yield raw


def read_bytes(path: Path, size: int = -1) -> bytes:
    """A whole file, or its first `size` bytes, decompressed. Raises UserError where it is damaged."""
    return next(blocks(path, size), b"")


def begins_array(path: Path) -> bool:
    """Whether "[" is the first character that is no space."""
    return read_bytes(path, BEGINNING).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def blocks(path: Path, size: int = BLOCK) -> Iterator[bytes]:
    """A file in parts of `size` bytes, decompressed. Raises UserError where it is damaged."""
    try:
        with opened(path) as file:
            while block := file.read(size):
                yield block
    except DAMAGE as error:
        raise UserError(f"{path}: {_damage(error)}") from error


def numbered_lines(
    path: Path, start: int = 0, end: int | None = None, first_line: int = 1
) -> Iterator[tuple[int, bytes | UserError]]:
    """Each line with its number and its "\n" but without the mark that opens a file, or what is wrong with it.

    Only "\n" ends a line: str.splitlines would cut at U+2028 inside a text.
    start, end, first_line: a part of a file that is not compressed, as in keju.data_prepare.corpus.Piece.
    Raises UserError "file:line: ..." where a compressed file is damaged.
    """
    number, position, limit = first_line, start, MAX_LINE
    try:
        with opened(path) as file:
            if start:
                file.seek(start)
            while (end is None or position < end) and (raw := file.readline(limit)):
                position += len(raw)
                if len(raw) == limit and not raw.endswith(b"\n"):
                    del raw
                    # Before its end is looked for, which may be many GB away.
                    yield number, UserError(f"a line of more than {limit >> 20} MiB")
                    while (rest := file.readline(BLOCK)) and not rest.endswith(b"\n"):
                        position += len(rest)
                    position += len(rest)
                elif number == 1:
                    yield number, raw.removeprefix(codecs.BOM_UTF8)
                else:
                    yield number, raw
                number += 1
    except DAMAGE as error:
        raise UserError(f"{path}:{number}: {_damage(error)}") from error


def decoded(raw: bytes | UserError, encoding: str = "utf-8", ends: bytes = b"\r\n") -> str | UserError:
    """The text of a line without `ends` at its end, or what is wrong with it."""
    if isinstance(raw, UserError):
        return raw
    try:
        return raw.rstrip(ends).decode(encoding)
    except UnicodeDecodeError as error:
        return UserError(f"not {encoding.upper()} text ({error.reason} at byte {error.start} of the line)")


class Damaged(Exception):
    """Compressed bytes that are not what was written."""


class TooLarge(Exception):
    """What was written refers to bytes so far back that reading it takes as much memory as the file asks for."""


DAMAGE = (Damaged, TooLarge, EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError)


def _damage(error: Exception) -> str:
    if isinstance(error, TooLarge):
        return "it takes too much memory to decompress; compress it again (zstd without --long and --ultra, or xz -9)"
    return f"the compressed file is cut off or damaged ({str(error).rstrip('.')}); make or copy it again"


class _Frames(io.RawIOBase):
    """All frames of a compressed file, one after the other; unlike the libraries' own readers it tells an end from a
    cut, and what is no frame after one."""

    padding = b""  # bytes that may stand after a frame

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._frame = None
        self._is_first = True
        self._input = b""
        self._output = memoryview(b"")

    def begin(self):
        """A decompressor of one frame."""
        raise NotImplementedError

    def decompressed(self, frame, data: bytes) -> bytes:
        """Raises Damaged or TooLarge."""
        raise NotImplementedError

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
        data, self._input = self._input, b""
        if self._frame is None:
            data = data if self._is_first else data.lstrip(self.padding)
            if not data:
                return b""
            self._frame = self.begin()
        frame = self._frame
        output = self.decompressed(frame, data)
        if frame.eof:
            self._input, self._frame, self._is_first = frame.unused_data, None, False
        return output


class _Zst(_Frames):
    def begin(self):
        import zstandard

        return zstandard.ZstdDecompressor().decompressobj()

    def decompressed(self, frame, data: bytes) -> bytes:
        import zstandard

        try:
            return frame.decompress(data)
        except zstandard.ZstdError as error:
            raise (TooLarge if "too much memory" in str(error) else Damaged)(error) from error


class _XZ(_Frames):
    padding = b"\0"

    def begin(self):
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_MEMORY)

    def decompressed(self, frame, data: bytes) -> bytes:
        try:
            return frame.decompress(data)
        except lzma.LZMAError as error:
            raise (TooLarge if "Memory usage limit" in str(error) else Damaged)(error) from error

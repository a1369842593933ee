"""Bytes of a raw file as numbered lines of text: plain, .gz or .zst; UTF-8 or GB18030; whole or cut at line starts."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

BLOCK = 1 << 20
MAX_LINE = 1 << 26  # bytes; a longer line is no record, and must not fill the memory
COMPRESSED = (".gz", ".zst")

Line = tuple[int, "str | ValueError"]


def blocks(path: Path, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """The bytes of a file, decompressed; `start` and `end` count in a file that is not compressed.

    Raises ValueError "file: ..." for a broken or incomplete compressed file.
    """
    if path.suffix == ".gz":
        yield from _gzip_blocks(path)
    elif path.suffix == ".zst":
        yield from _zstandard_blocks(path)
    else:
        with path.open("rb") as file:
            file.seek(start)
            left = float("inf") if end is None else end - start
            while left > 0 and (block := file.read(min(BLOCK, left) if end is not None else BLOCK)):
                left -= len(block)
                yield block


def _gzip_blocks(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path) as file:
            while block := file.read(BLOCK):
                yield block
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: broken or incomplete gzip file ({error}); fetch it again") from error


def _zstandard_blocks(path: Path) -> Iterator[bytes]:
    try:
        import zstandard
    except ModuleNotFoundError as error:
        raise ValueError(f"{path}: .zst files need the package zstandard: pip install zstandard") from error
    # zstandard's own stream_reader takes a file that breaks off for a whole one.
    frame = None
    try:
        with path.open("rb") as file:
            while data := file.read(BLOCK):
                while data:
                    frame = frame or zstandard.ZstdDecompressor().decompressobj()
                    if block := frame.decompress(data):
                        yield block
                    data, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    except zstandard.ZstdError as error:
        raise ValueError(f"{path}: broken zstandard file ({error}); fetch it again") from error
    if frame is not None:
        raise ValueError(f"{path}: incomplete zstandard file; fetch it again")


def encoding_of(path: Path) -> str:
    """ "utf-8" or "gb18030", by what most lines of the first block are. Raises ValueError for UTF-16."""
    block = next(blocks(path), b"")
    if block.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{path}: UTF-16 text; save it as UTF-8")
    votes = {"utf-8": 0, "gb18030": 0}
    lines = block.split(b"\n")
    for line in lines[:-1] if len(lines) > 1 and len(block) == BLOCK else lines:
        if not line.isascii():
            for encoding in votes:
                if _decodes(line, encoding):
                    votes[encoding] += 1
                    break
    return max(votes, key=votes.__getitem__)


def _decodes(line: bytes, encoding: str) -> bool:
    try:
        line.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def text_lines(data: Iterable[bytes], encoding: str, first_line: int = 1, end: bytes = b"\r") -> Iterator[Line]:
    """(line number, text without "\\n" and `end`, or what is wrong with the line). Only "\\n" ends a line."""
    for number, raw in enumerate(_split(data), start=first_line):
        if isinstance(raw, ValueError):
            yield number, raw
            continue
        try:
            raw = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            yield number, raw.removesuffix(end).decode(encoding)
        except UnicodeDecodeError as error:
            name = encoding.upper()
            yield number, ValueError(f"not {name} text ({error.reason} at byte {error.start} of the line)")


def is_blank(line: str | ValueError) -> bool:
    return isinstance(line, str) and not line.strip()


def _split(data: Iterable[bytes]) -> Iterator[bytes | ValueError]:
    rest, too_long = b"", False
    for block in data:
        first, *others = block.split(b"\n")
        rest += first
        too_long |= len(rest) > MAX_LINE
        if too_long:
            rest = b""
        if others:
            yield ValueError(f"a line of more than {MAX_LINE >> 20} MiB") if too_long else rest
            yield from others[:-1]
            rest, too_long = others[-1], False
    if rest or too_long:
        yield ValueError(f"a line of more than {MAX_LINE >> 20} MiB") if too_long else rest


def line_cuts(path: Path, piece_bytes: int) -> list[tuple[int, int, int]]:
    """(start, end, number of the first line) of parts of a plain file that begin at line starts, each of at least
    `piece_bytes` but the last."""
    cuts, lines, offset, target = [(0, 1)], 1, 0, piece_bytes
    for block in blocks(path):
        counted = 0
        while target <= offset + len(block):
            newline = block.find(b"\n", max(target - 1 - offset, counted))
            if newline < 0:
                break
            lines += block.count(b"\n", counted, newline + 1)
            counted = newline + 1
            cuts.append((offset + counted, lines))
            target = offset + counted + piece_bytes
        lines += block.count(b"\n", counted)
        offset += len(block)
    ends = [*(start for start, _ in cuts[1:]), offset]
    return [(start, end, line) for (start, line), end in zip(cuts, ends, strict=True) if end > start]


def line_before(path: Path, start: int) -> bytes:
    """The last line that is not blank before `start`, where a line begins; b"" if there is none."""
    tail, position = b"", start
    with path.open("rb") as file:
        while position > 0 and b"\n" not in tail.strip():
            size = min(BLOCK, position)
            position -= size
            file.seek(position)
            tail = file.read(size) + tail.rstrip()
            if len(tail) > MAX_LINE:
                return b""
    return tail.strip().rpartition(b"\n")[2]

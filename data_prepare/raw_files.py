"""Raw text files as people have them: pieces that begin at lines, numbered lines as a stream, wrong encodings named.

Only "\\n" ends a line. A line that cannot be used is a BadRow with its place; a file of another encoding is an error.
"""

from __future__ import annotations

import codecs
import logging
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from keju.data_prepare.corpus import BadRow, Piece

logger = logging.getLogger(__name__)

BLOCK = 1 << 20
SAMPLE_BYTES = 1 << 16
MAX_LINE_BYTES = 1 << 24
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

Line = tuple[str, str]  # ("file:line", text without its end)


def wrong_folder(folder: Path, expected: str, download: str) -> ValueError:
    """The error to raise where `folder` holds something else than a corpus."""
    what = "nothing of this corpus in this folder" if folder.is_dir() else "no such folder"
    return ValueError(f"--raw_dir {folder}: {what}; expected {expected}; to download it: {download}")


def file_pieces(folder: Path, paths: Iterable[Path], piece_bytes: int | None = None) -> list[Piece]:
    """Pieces of files under `folder`, in the order of their names: whole files if `piece_bytes` is None.

    A file without content is warned about and left out. Raises ValueError if every file is empty, and for a file that
    is GBK or UTF-16 ("file: what it is; how to convert it").
    """
    names = sorted(path.relative_to(folder).as_posix() for path in paths)
    pieces: list[Piece] = []
    for name in names:
        if (folder / name).stat().st_size == 0:
            logger.warning("%s: this file is empty", folder / name)
            continue
        check_encoding(folder / name)
        pieces += [Piece(name)] if piece_bytes is None else line_pieces(folder, name, piece_bytes)
    if not pieces:
        raise ValueError(f"{folder / names[0]}: this file is empty{', and so are all others' if names[1:] else ''}")
    return pieces


def check_encoding(path: Path) -> None:
    """Raise ValueError if the beginning of a file is UTF-16 or GBK, with the command that converts it."""
    with path.open("rb") as file:
        sample = file.read(SAMPLE_BYTES)
    if sample.startswith(UTF16_MARKS):
        raise ValueError(_conversion(path, "UTF-16", "utf-16"))
    lines = [line for line in sample.split(b"\n")[: -1 if len(sample) == SAMPLE_BYTES else None] if not line.isascii()]
    # A few broken lines of UTF-8 may happen to be GB18030, and a short word of GBK UTF-8: the majority decides.
    if 2 * sum(_decodes(line, "utf-8") for line in lines) < len(lines) and _decodes(b"\n".join(lines), "gb18030"):
        raise ValueError(_conversion(path, "GBK (GB18030)", "gb18030"))


def _conversion(path: Path, name: str, code: str) -> str:
    source, target = shlex.quote(str(path)), shlex.quote(f"{path}.utf8")
    return f"{path}: this is {name}, not UTF-8; convert it: iconv -f {code} -t utf-8 {source} > {target}"


def _decodes(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def line_pieces(folder: Path, path: str, piece_bytes: int) -> list[Piece]:
    """A file of lines in pieces of at least `piece_bytes` (but for the last), each up to the next end of a line."""
    size = (folder / path).stat().st_size
    pieces: list[Piece] = []
    first_line = 1
    with (folder / path).open("rb") as file:
        while (start := file.tell()) < size:
            num_lines = _num_line_ends(file, max(piece_bytes, 1) - 1) + _finish_line(file)
            pieces.append(Piece(path, start, file.tell(), first_line))
            first_line += num_lines
    return pieces


def count_lines(path: Path) -> int:
    """How many lines a file has, the last one with or without an end."""
    size = path.stat().st_size
    with path.open("rb") as file:
        num_ends = _num_line_ends(file, size)
        file.seek(max(size - 1, 0))
        return num_ends + (file.read(1) not in (b"", b"\n"))


def start_of_line(path: Path, number: int) -> int:
    """Where a line begins, in bytes; the first is number 1. The size of the file if there are fewer."""
    with path.open("rb") as file:
        while number > 1:
            start, block = file.tell(), file.read(BLOCK)
            if block.count(b"\n") >= number - 1:
                position = -1
                for _ in range(number - 1):
                    position = block.index(b"\n", position + 1)
                return start + position + 1
            if not block:
                break
            number -= block.count(b"\n")
        return file.tell()


def _num_line_ends(file: BinaryIO, num_bytes: int) -> int:
    """Read so many bytes and count the line ends in them."""
    num_ends = 0
    while num_bytes > 0 and (block := file.read(min(BLOCK, num_bytes))):
        num_ends += block.count(b"\n")
        num_bytes -= len(block)
    return num_ends


def _finish_line(file: BinaryIO) -> bool:
    """Read to the end of the line; whether it has one."""
    while part := file.readline(BLOCK):
        if part.endswith(b"\n"):
            return True
    return False


def text_lines(folder: Path, piece: Piece) -> Iterator[Line | BadRow]:
    """All lines of a piece, blank ones too, without "\\r" at their ends and without the mark that opens a file.

    A line that is not UTF-8, has a NUL byte, or is longer than MAX_LINE_BYTES is a BadRow in its place.
    """
    with (folder / piece.path).open("rb") as file:
        file.seek(piece.start)
        position, number = piece.start, piece.first_line
        while piece.end is None or position < piece.end:
            raw = file.readline(MAX_LINE_BYTES)
            if not raw:
                return
            where = f"{piece.path}:{number}"
            if len(raw) == MAX_LINE_BYTES and not raw.endswith(b"\n"):
                _finish_line(file)
                yield BadRow(where, f"a line of more than {MAX_LINE_BYTES >> 20} MiB")
                position = file.tell()
            else:
                yield _decoded(raw.removeprefix(codecs.BOM_UTF8) if position == 0 else raw, where)
                position += len(raw)
            number += 1


def _decoded(raw: bytes, where: str) -> Line | BadRow:
    if b"\0" in raw:
        return BadRow(where, "a NUL byte in the text")
    try:
        return where, raw.rstrip(b"\r\n").decode()
    except UnicodeDecodeError as error:
        return BadRow(where, f"not UTF-8 text ({error.reason} at byte {error.start} of the line)")

"""Raw files as people have them: pieces that begin at lines, numbered lines as a stream, UTF-8 or GBK, plain or packed.

Only "\n" ends a line. A line that cannot be used has its place and a reason, and the rest of the file is read.
"""

from __future__ import annotations

import codecs
import logging
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn

from keju.data_prepare.corpus import BadRow, Piece
from keju.errors import UserError
from keju.records.opening import BEGINNING, BLOCK, MAX_LINE, decoded, numbered_lines, read_bytes

logger = logging.getLogger(__name__)

MAX_FILE = 1 << 28  # bytes of one that is read as one text
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

Line = tuple[str, str]  # ("file:line", text without its end)


def wrong_folder(folder: Path, expected: str, download: str) -> UserError:
    """The error to raise where `folder` holds something else than a corpus."""
    what = "no such folder"
    if folder.exists():
        what = "nothing of this corpus in this folder" if folder.is_dir() else "is a file; give the folder it lies in"
    return UserError(f"{folder}: {what}; expected {expected}; to download it: {download}", option="raw_dir")


def file_pieces(folder: Path, paths: Iterable[Path], piece_bytes: int | None = None) -> list[Piece]:
    """Pieces of files under `folder`, in the order of their names: whole files if `piece_bytes` is None.

    A file without content is warned about and left out. Raises UserError if every file is empty, or one is UTF-16.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in paths)
    pieces: list[Piece] = []
    for name in names:
        if (folder / name).stat().st_size == 0:
            logger.warning("%s: this file is empty", folder / name)
            continue
        check_encoding(folder / name)
        pieces += [Piece(name)] if piece_bytes is None else line_pieces(folder / name, name, piece_bytes)
    if not pieces:
        raise UserError(f"{folder / names[0]}: this file is empty{', and so are all others' if names[1:] else ''}")
    return pieces


# Marks, and the characters that make up about a third of any Chinese text.
_MARKS = "，。、！？：；（）《》“”‘’「」…—　"
_BOTH = "的一是不了在人有我他到大地子中你生年就那和要出也得以可下而天去能小多然心都好看起成只如事把用道想作美"
USUAL = {
    "gb18030": frozenset(f"{_MARKS}{_BOTH}这个们来时为说国着她里后自会家过对于学么之发当没还第样种开"),
    "big5": frozenset(f"{_MARKS}{_BOTH}這個們來時為說國著她裡後自會家過對於學麼之發當沒還第樣種開"),
}
HIGH, ALONE = re.compile(rb"[\x80-\xff]+"), re.compile(rb"(?<=[\w ])[\x80-\xff](?=[\w ,.;:!?\n\"])")
CLEARLY = 0.15  # by which Big5 has to be likelier


def check_encoding(path: Path) -> None:
    """Warn of a file that is read as GBK. Raises UserError for UTF-16, with the command that converts it."""
    if encoding_of(path) != "utf-8":
        logger.warning("%s: this is GBK (GB18030), not UTF-8, and is read as such", path)


def encoding_of(path: Path) -> str:
    """ "utf-8" or "gb18030", whichever more lines of the file's beginning are.

    Raises UserError for UTF-16, Big5 and Windows-1252, with the command that converts them.
    """
    sample = read_bytes(path, BEGINNING)
    if sample.startswith(UTF16_MARKS):
        _refuse(path, "utf-16")
    # A few broken lines of UTF-8 may happen to be GB18030, and a short word of GBK UTF-8: the majority decides.
    votes = {"utf-8": 0, "gb18030": 0}
    for line in sample.splitlines(keepends=True):
        if not line.isascii():
            for encoding in votes:
                if _begins_with(line, encoding):
                    votes[encoding] += 1
                    break
    found = max(votes, key=votes.__getitem__)
    if not votes["utf-8"]:
        # Nearly any bytes are some rare characters in GB18030.
        if _share_of_usual(sample, "big5") > _share_of_usual(sample, "gb18030") + CLEARLY:
            _refuse(path, "big5")
        # Letters with accents and curved marks stand alone among others; a Chinese character has two bytes or more.
        alone, runs = len(ALONE.findall(sample)), len(HIGH.findall(sample))
        if alone >= 5 and alone > 0.8 * runs:
            _refuse(path, "cp1252")
    return found


def _refuse(path: Path, encoding: str) -> NoReturn:
    source, target = shlex.quote(str(path)), shlex.quote(f"{path}.utf8")
    convert = f"iconv -f {encoding} -t utf-8 {source} > {target}"
    raise UserError(f"{path}: this is {encoding.upper()}, not UTF-8; convert it: {convert}")


def _share_of_usual(sample: bytes, encoding: str) -> float:
    """Of the characters beyond ASCII in a text of this encoding, the share of those that any text is full of."""
    characters = [character for character in sample.decode(encoding, "replace") if not character.isascii()]
    return sum(character in USUAL[encoding] for character in characters) / max(1, len(characters))


def _begins_with(line: bytes, encoding: str) -> bool:
    """Whether a line is text, of whose last character the sample may have cut something off."""
    try:
        codecs.getincrementaldecoder(encoding)().decode(line, final=line.endswith(b"\n"))
    except UnicodeDecodeError:
        return False
    return True


def line_pieces(path: Path, name: str, piece_bytes: int) -> list[Piece]:
    """A file of lines in pieces of at least `piece_bytes` (but for the last), each up to the next end of a line."""
    size = path.stat().st_size
    pieces: list[Piece] = []
    first_line = 1
    with path.open("rb") as file:
        while (start := file.tell()) < size:
            num_lines = _num_line_ends(file, max(piece_bytes, 1) - 1) + _finish_line(file)
            pieces.append(Piece(name, start, file.tell(), first_line))
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


def whole_text(path: Path) -> str | UserError:
    """The text of a file, whose lines end in "\n", or why it is none."""
    encoding, data = encoding_of(path), read_bytes(path, MAX_FILE + 1)
    if len(data) > MAX_FILE:
        return UserError(f"a text of more than {MAX_FILE >> 20} MiB; cut it")
    try:
        return data.removeprefix(codecs.BOM_UTF8).decode(encoding).replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        return UserError(f"not {encoding.upper()} text ({error.reason} at byte {error.start})")


def text_lines(folder: Path, piece: Piece) -> Iterator[Line | BadRow]:
    """All lines of a piece, blank ones too, without "\r" at their ends; see `numbered_texts`."""
    for number, line in numbered_texts(folder / piece.path, piece):
        where = f"{piece.path}:{number}"
        yield BadRow(where, str(line)) if isinstance(line, UserError) else (where, line)


def numbered_texts(path: Path, piece: Piece, ends: bytes = b"\r\n") -> Iterator[tuple[int, str | UserError]]:
    """(number, text without `ends` at its end) of all lines of a piece.

    A line that is not of the file's encoding, has a NUL byte, or is longer than MAX_LINE is a UserError in its place.
    """
    encoding = encoding_of(path)
    for number, raw in numbered_lines(path, piece.start, piece.end, piece.first_line):
        text = decoded(raw, encoding, ends)
        if isinstance(text, str) and "\0" in text:
            text = UserError("a NUL byte in the text")
        yield number, text

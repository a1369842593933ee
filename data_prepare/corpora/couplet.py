"""Couplets (对联): write the second line to a first line, of the same length and answering it word by word.

Either couplet-dataset as it is downloaded, in.txt and out.txt with spaces between the characters, in the folder itself
or in train/ and test/; or couplets.txt with both lines in one, separated by one character in the middle.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from keju.data_prepare.corpus import BadRow, Item, Piece
from keju.data_prepare.raw_files import (
    check_encoding,
    count_lines,
    file_pieces,
    start_of_line,
    text_lines,
    wrong_folder,
)
from keju.errors import UserError

VERSION = 1
DOWNLOAD = (
    "wget https://github.com/wb14123/couplet-dataset/releases/download/1.0/couplet.tar.gz && tar xzf couplet.tar.gz"
)
WRONG = ((0, 2), (-1, 2))  # of the same length, of another length
EXPECTED = "in.txt and out.txt (of couplet-dataset, in train/ and test/ or not) or couplets.txt"
PROMPT = "请根据上联对出下联。\n上联：{}"


def pieces(folder: Path, piece_bytes: int) -> list[Piece]:
    """Pieces of every in.txt (its out.txt is found by line numbers) and of couplets.txt."""
    firsts = [path for pattern in ("in.txt", "*/in.txt", "*/*/in.txt") for path in folder.glob(pattern)]
    joined = [path for path in [folder / "couplets.txt"] if path.is_file()]
    if not firsts and not joined:
        raise wrong_folder(folder, EXPECTED, DOWNLOAD)
    for first in firsts:
        second = first.with_name("out.txt")
        if not second.is_file():
            raise UserError(f"{second}: no such file; it must have the second lines to {first}")
        num_first, num_second = count_lines(first), count_lines(second)
        if num_first != num_second:
            raise UserError(f"{first} has {num_first} lines, {second} has {num_second}: download both again")
        check_encoding(second)
    return file_pieces(folder, firsts + joined, piece_bytes)


def read(folder: Path, piece: Piece) -> Iterator[Item | BadRow]:
    """One item a couplet."""
    second_path = Path(piece.path).with_name("out.txt").as_posix()
    if Path(piece.path).name == "couplets.txt":
        couplets = ((line, line) for line in text_lines(folder, piece))
        split = _halves
    else:
        start = start_of_line(folder / second_path, piece.first_line)
        seconds = text_lines(folder, Piece(second_path, start, None, piece.first_line))
        couplets = zip(text_lines(folder, piece), seconds, strict=False)
        split = _without_spaces
    for first, second in couplets:
        bad = next((line for line in (first, second) if isinstance(line, BadRow)), None)
        if bad:
            yield bad
        elif first[1].strip() or second[1].strip():
            try:
                yield _item(*split(first[1], second[1]), first[0])
            except UserError as error:
                yield BadRow(first[0], str(error))


def _without_spaces(first: str, second: str) -> tuple[str, str]:
    return "".join(first.split()), "".join(second.split())


def _halves(line: str, _: str) -> tuple[str, str]:
    half = len(line) // 2
    if len(line) % 2 == 0 or line[half].isalnum():
        raise UserError("expected two lines of one length with one character between them that is no letter")
    return line[:half], line[half + 1 :]


def _item(first: str, second: str, where: str) -> Item:
    if not first.strip() or not second.strip():
        raise UserError(f"the {'second' if first.strip() else 'first'} line is empty")
    if len(first) != len(second):
        raise UserError(f"the first line has {len(first)} characters, the second {len(second)}")
    row = {"prompt": PROMPT.format(first), "answers": [{"answer": second, "score": 1}]}
    return Item(row, where, group=first, source=Path(where).parent.name, keys=(str(len(first)),), content=first)

"""Classical Chinese and its translation, sentence by sentence, by book (NiuTrans Classical-Modern): both ways.

Both layouts: bitext/<book> of the first version, and 双语数据/<book>/<chapter>/.../bitext.txt of today's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from keju.data_prepare.corpus import BadRow, Item, Piece
from keju.data_prepare.raw_files import Line, file_pieces, text_lines, wrong_folder

VERSION = 1
DOWNLOAD = "git clone --depth 1 https://github.com/NiuTrans/Classical-Modern"
WRONG = ((0, 2), (-1, 2))  # of the same book, of another book
# Neighbouring sentences tell one story. The first version does not say where a chapter ends, so so many consecutive
# pairs of a book are split as one group.
PAIRS_A_BLOCK = 50
CLASSICAL, MODERN = "古文", "现代文"
TASKS = {
    "to modern": ("把下面的文言文翻译成现代汉语。\n{}", CLASSICAL, MODERN),
    "to classical": ("把下面的现代汉语翻译成文言文。\n{}", MODERN, CLASSICAL),
}


def pieces(folder: Path, piece_bytes: int) -> list[Piece]:
    """One piece a file: a book of the first version is a few MB at most, a chapter of today's a few KB."""
    first_version = [path for path in folder.glob("bitext/*") if path.is_file() and not path.suffix]
    paths = first_version + list(folder.glob("双语数据/**/bitext.txt"))
    if not paths:
        raise wrong_folder(folder, "bitext/<book> or 双语数据/<book>/.../bitext.txt", DOWNLOAD)
    return file_pieces(folder, paths)


def read(folder: Path, piece: Piece) -> Iterator[Item | BadRow]:
    """Two items a pair."""
    parts = PurePosixPath(piece.path).parts
    by_chapter = parts[-1] == "bitext.txt"
    book = parts[1] if by_chapter else parts[-1]
    num_pairs = 0
    for pair in _pairs(text_lines(folder, piece)):
        if isinstance(pair, BadRow):
            yield pair
            continue
        group = "/".join(parts[1:-1]) if by_chapter else f"{book} {num_pairs // PAIRS_A_BLOCK}"
        num_pairs += 1
        where, texts = pair
        for task, (prompt, given, wanted) in TASKS.items():
            row = {"prompt": prompt.format(texts[given]), "answers": [{"answer": texts[wanted], "score": 1}]}
            yield Item(row, where, group, source=book, task=task, keys=(book,), content=texts[given])


def _pairs(lines: Iterator[Line | BadRow]) -> Iterator[tuple[str, dict[str, str]] | BadRow]:
    """("file:line" of the classical sentence, both texts by name) of every pair."""
    classical: Line | None = None  # that still waits for its translation
    for line in lines:
        name, text = ("", "") if isinstance(line, BadRow) else _labelled(line[1])
        if name == MODERN and text and classical:
            yield classical[0], {CLASSICAL: classical[1], MODERN: text}
            classical = None
            continue
        if isinstance(line, tuple) and not line[1].strip():
            continue
        if classical:
            yield BadRow(classical[0], f"{CLASSICAL} without {MODERN}")
        classical = (line[0], text) if name == CLASSICAL and text else None
        if isinstance(line, BadRow):
            yield line
        elif not classical:
            yield BadRow(line[0], _reason(name, text))
    if classical:
        yield BadRow(classical[0], f"{CLASSICAL} without {MODERN}")


def _labelled(line: str) -> tuple[str, str]:
    for name in (CLASSICAL, MODERN):
        if line.startswith((f"{name}：", f"{name}:")):
            return name, line[len(name) + 1 :].strip()
    return "", line


def _reason(name: str, text: str) -> str:
    if not name:
        return f"a line begins with neither {CLASSICAL}： nor {MODERN}："
    return f"{name} without {CLASSICAL}" if text else f"{name} is empty"

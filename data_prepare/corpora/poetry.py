"""Classical poetry (chinese-poetry): write a poem by its author and title, continue its first line, and its text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keju.data_prepare.corpus import BadRow, Item, Piece
from keju.data_prepare.poem_files import PROSE, Kind, kind_of, poem, poem_files
from keju.data_prepare.raw_files import file_pieces, wrong_folder
from keju.data_prepare.raw_json import json_file
from keju.errors import UserError

VERSION = 1
DOWNLOAD = "git clone --depth 1 https://github.com/chinese-poetry/chinese-poetry"
# Write: of the same author, of the same genre, of another genre. Continue: of the same form (the tune, or so many lines
# of such length), of the same genre, of another genre.
WRONG = ((0, 2), (-1, 1), (-2, 1))
SIMPLIFY = True  # some of its files are in traditional characters, others not
# A classic in prose is continued paragraph by paragraph, from a beginning that is not just "he said".
PARAGRAPH = re.compile(r"(.{8,}?[。？！；][”’」』]*)(?![”’」』])(.+)")


def pieces(folder: Path, piece_bytes: int) -> list[Piece]:
    """One piece a file: the largest has 4 MB."""
    paths = poem_files(folder)
    if not paths:
        raise wrong_folder(
            folder, "poet.tang.0.json, ci.song.0.json, shijing.json, ... in any folder below it", DOWNLOAD
        )
    return file_pieces(folder, paths)


def read(folder: Path, piece: Piece) -> Iterator[Item | BadRow]:
    """Up to three items a poem; a text, and a continuation of every paragraph, of the classics in prose."""
    kind = kind_of(Path(piece.path))
    assert kind, f"{piece.path} is no piece of this corpus"
    for line in json_file(folder, piece):
        try:
            yield from [line] if isinstance(line, BadRow) else _items(kind, *line)
        except UserError as error:
            yield BadRow(line[0], str(error))


def _items(kind: Kind, where: str, fields: dict[str, Any]) -> Iterator[Item]:
    it = poem(kind, fields)
    whole = "\n".join(it.lines)
    # By the text and not by author or title: what two authors or two files have in common is in one split.
    beginning = "".join(filter(str.isalnum, whole))[:10]
    group = it.name if kind.genre == PROSE and it.name else beginning
    known = {"where": where, "group": group, "source": kind.genre}
    head = f"{it.author}{it.name}"
    yield Item({"text": f"{head}\n{whole}" if head else whole}, task="text", **known)
    if it.name and kind.genre != PROSE:
        prompt = f"请写出{it.author}{'的' if it.author else ''}{it.name}。"
        yield Item(_row(prompt, whole), task="write", keys=(it.part, kind.genre), **known)
    if kind.genre == PROSE:
        continued = [found.groups() for found in map(PARAGRAPH.fullmatch, it.lines) if found]
    else:
        continued = [(it.lines[0], "\n".join(it.lines[1:]))] if it.lines[1:] else []
    for start, rest in continued:
        yield Item(_row(f"请接着往下写。\n{start}", rest), task="continue", keys=(it.form, kind.genre), **known)


def _row(prompt: str, answer: str) -> dict[str, Any]:
    return {"prompt": prompt, "answers": [{"answer": answer, "score": 1}]}

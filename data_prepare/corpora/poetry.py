"""Classical poetry (chinese-poetry): write a poem by its author and title, continue its first line, and its text.

A file is known by its name, which is the same in every layout: the folders of today (全唐诗, 宋词, 论语, ...), those of
before 2023 (json or shi, ci, lunyu, ...) and those of the npm package (quantangshi, songci, ...). Left out: lists of
authors, selections (唐诗三百首: its poems are among the others), primers (蒙学), aphorisms (幽梦影), and 御定全唐詩, the
Tang poems once more with characters that a converter broke.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from keju.data_prepare.corpus import BadRow, Item, Piece
from keju.data_prepare.raw_files import file_pieces, wrong_folder
from keju.data_prepare.raw_json import checked_text, json_file, text_field

VERSION = 1
DOWNLOAD = "git clone --depth 1 https://github.com/chinese-poetry/chinese-poetry"
# Write: of the same author, of the same genre, of another genre. Continue: of the same form (so many lines, so long;
# or the same tune), of the same genre, of another genre.
WRONG = ((0, 2), (-1, 1), (-2, 1))


@dataclass(frozen=True, slots=True)
class Kind:
    """What all poems of a file have in common. book: of which they are parts. author: of all of them, "" if it varies."""

    genre: str
    book: str = ""
    author: str = ""


KINDS = {
    r"poet\.tang\.\d+": Kind("唐诗"),
    r"poet\.song\.\d+": Kind("宋诗"),
    r"ci\.song\.\d+y?": Kind("词"),
    r"huajianji-[\dx]+-juan": Kind("词"),
    r"poetrys": Kind("词"),
    r"纳兰性德诗集": Kind("词"),
    r"yuanqu": Kind("曲"),
    r"caocao": Kind("乐府", author="曹操"),
    r"chuci": Kind("楚辞", "楚辞"),
    r"shijing": Kind("诗经", "诗经"),
    r"lunyu": Kind("经书", "论语"),
    r"mengzi": Kind("经书", "孟子"),
    r"daxue": Kind("经书", "大学"),
    r"zhongyong": Kind("经书", "中庸"),
}
OTHER_FOLDERS = {"error", "strains", "rank"}  # have files of the same names
NOTE = re.compile(r"（[^（）]*）|\([^()]*\)|〖\d+〗|【\d+】")
LEFTOVER = re.compile(r"[□■�〖〗（）{}]")
NO_TEXT = {"無正文", "无正文", "空", "缺"}
CLAUSE_END = re.compile(r"[，。！？；：、,.!?;:]")
UNTITLED = {"", "句", "失题", "失題", "失调名", "无题", "無題"}


def pieces(folder: Path, piece_bytes: int) -> list[Piece]:
    """One piece a file: the largest has 4 MB."""
    paths = [
        path
        for path in folder.rglob("*.json")
        if _kind(path.name) and not OTHER_FOLDERS & set(path.relative_to(folder).parts)
    ]
    if not paths:
        raise wrong_folder(
            folder, "poems such as poet.tang.0.json, ci.song.0.json, shijing.json, in any folder", DOWNLOAD
        )
    return file_pieces(folder, paths)


def _kind(name: str) -> Kind | None:
    return next((kind for pattern, kind in KINDS.items() if re.fullmatch(pattern + r"\.json", name)), None)


def read(folder: Path, piece: Piece) -> Iterator[Item | BadRow]:
    """Up to three items a poem; a text and a continuation of every paragraph of the classics in prose."""
    kind = _kind(PurePosixPath(piece.path).name)
    assert kind, f"{piece.path} is no piece of this corpus"
    for line in json_file(folder, piece):
        try:
            yield from [line] if isinstance(line, BadRow) else _items(kind, *line)
        except ValueError as error:
            yield BadRow(line[0], str(error))


def _items(kind: Kind, where: str, fields: dict[str, Any]) -> list[Item]:
    lines = _lines(kind, fields)
    author = kind.author or text_field(fields, "author")
    tune, section = text_field(fields, "rhythmic"), text_field(fields, "section") or text_field(fields, "chapter")
    title = text_field(fields, "title") or text_field(fields, "chapter") or tune
    if (
        title == tune and tune not in UNTITLED
    ):  # a hundred poems have the same tune: its first words tell one from another
        title = f"{tune}·{CLAUSE_END.split(lines[0])[0]}"
    name = f"《{kind.book}·{title}》" if kind.book not in ("", title) else f"《{title}》"
    head = f"{author}{name}" if title not in UNTITLED or kind.book else author
    # Of any author or folder: a poem that two have in common is in one split.
    group = f"{kind.book}{title}" if kind.genre == "经书" else "".join(filter(str.isalnum, "".join(lines)))[:10]
    known = {"where": where, "group": group, "source": kind.genre}
    items = [Item({"text": "\n".join([head, *lines] if head else lines)}, task="text", **known)]
    if kind.genre == "经书":
        starts = [re.match(r"(.+?[。？！；][”’」』]?)(.+)", line) for line in lines]
        return items + [_continue(found[1], found[2], (name, kind.genre), known) for found in starts if found]
    if title not in UNTITLED:
        prompt = f"请写出{author + '的' if author else ''}{name}。"
        # Where nobody knows who wrote it, the poems beside it are the near ones.
        keys = (author or f"{kind.book}{section}", kind.genre)
        row = {"prompt": prompt, "answers": [{"answer": "\n".join(lines), "score": 1}]}
        items.append(Item(row, task="write", keys=keys, **known))
    if len(lines) > 1:
        form = tune or f"{kind.genre}{len(lines)}×{len(lines[0])}"
        items.append(_continue(lines[0], "\n".join(lines[1:]), (form, kind.genre), known))
    return items


def _continue(start: str, rest: str, keys: tuple[str, str], known: dict[str, str]) -> Item:
    row = {"prompt": f"请接着往下写。\n{start}", "answers": [{"answer": rest, "score": 1}]}
    return Item(row, task="continue", keys=keys, **known)


def _lines(kind: Kind, fields: dict[str, Any]) -> list[str]:
    """The lines of a poem without notes. Raises ValueError if it has none, or if characters are missing."""
    value = next((fields[name] for name in ("paragraphs", "content", "para") if fields.get(name)), None)
    if not isinstance(value, list):
        raise ValueError("no text in paragraphs, content or para")
    lines = [checked_text(line, f"line {number}") for number, line in enumerate(value, start=1)]
    if kind.genre != "曲":  # whose brackets are stage directions
        lines = [NOTE.sub("", NOTE.sub("", line)).strip() for line in lines]
    lines = [line for line in lines if any(map(str.isalnum, line))]
    if not lines or "".join(lines).strip("。") in NO_TEXT:
        raise ValueError("no text in paragraphs, content or para")
    broken = LEFTOVER.search("".join(lines)) if kind.genre != "曲" else re.search("[□{}]", "".join(lines))
    if broken:
        raise ValueError(f"characters are missing, or notes stand in the text ({broken[0]})")
    return lines

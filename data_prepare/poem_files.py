"""The files of chinese-poetry: which are poems of what kind, and what an object in them says.

A file is known by its name, which is the same in every layout: the folders of today (全唐诗, 宋词, 论语, ...), those of
before 2023 (json or shi, ci, lunyu, ...) and those of the npm package (quantangshi, songci, ...). Left out: lists of
authors, selections (唐诗三百首: its poems are among the others), primers (蒙学), aphorisms (幽梦影), 御定全唐詩: the
Tang poems once more, with characters that a converter broke.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keju.data_prepare.raw_json import checked_text, text_field
from keju.errors import UserError

PROSE, DRAMA = "经书", "曲"
OTHER_FOLDERS = {"error", "strains", "rank"}  # have files of the same names
NOTE = re.compile(r"（[^（）]*）|\([^()]*\)|〖\d+〗")
MISSING, LEFT_NOTE = re.compile(r"[□{}]"), re.compile(r"[（）〖〗]")
NO_TEXT = {"無正文", "无正文", "空", "缺"}
UNTITLED = {"", "句", "失题", "失題", "失调名", "无题", "無題"}
CLAUSE_END = re.compile(r"[，。！？；：、,.!?;:\s]")


@dataclass(frozen=True, slots=True)
class Kind:
    """What the poems of a file have in common. book: that they are parts of. author: where the poems do not say it."""

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
    r"yuanqu": Kind(DRAMA),
    r"caocao": Kind("乐府", author="曹操"),
    r"chuci": Kind("楚辞", book="楚辞"),
    r"shijing": Kind("诗经", book="诗经"),
    r"lunyu": Kind(PROSE, book="论语"),
    r"mengzi": Kind(PROSE, book="孟子"),
    r"daxue": Kind(PROSE, book="大学"),
    r"zhongyong": Kind(PROSE, book="中庸"),
}


@dataclass(frozen=True, slots=True)
class Poem:
    """A poem, or a chapter of a classic in prose.

    name: the title with the book in 《》, "" if it has none that tells it from others.
    author: "" if nobody knows. part: of the book, or the author. form: what poems that look alike have in common.
    """

    lines: tuple[str, ...]
    name: str
    author: str
    part: str
    form: str


def poem_files(folder: Path) -> list[Path]:
    """All files under `folder` that have poems."""
    return [
        path
        for path in folder.rglob("*.json")
        if kind_of(path) and not OTHER_FOLDERS & set(path.relative_to(folder).parts)
    ]


def kind_of(path: Path) -> Kind | None:
    return next((kind for pattern, kind in KINDS.items() if re.fullmatch(pattern + r"\.json", path.name)), None)


def poem(kind: Kind, fields: dict[str, Any]) -> Poem:
    """Raises UserError (without the place) if there is no text, or characters of it are missing."""
    lines = _lines(kind, fields)
    author = text_field(fields, "author") or kind.author
    chapter, section = text_field(fields, "chapter"), text_field(fields, "section")
    title, tune = text_field(fields, "title") or chapter, text_field(fields, "rhythmic")
    if kind.genre == DRAMA:
        tune = title
    if title in ("", tune) and tune not in UNTITLED:
        # A hundred poems have the name of a tune for a title: the first words tell one from another.
        title = f"{tune}·{CLAUSE_END.split(lines[0])[0]}"
    parts = dict.fromkeys(part for part in (kind.book, section if kind.book else "", title) if part)
    name = "" if title in UNTITLED else f"《{'·'.join(parts)}》"
    form = name if kind.genre == PROSE else tune or f"{kind.genre} {len(lines)}×{len(lines[0])}"
    return Poem(tuple(lines), name, author, author or f"{kind.book}{section}", form)


def _lines(kind: Kind, fields: dict[str, Any]) -> list[str]:
    value = next((fields[name] for name in ("paragraphs", "content", "para") if fields.get(name)), None)
    if not isinstance(value, list):
        raise UserError("no text in paragraphs, content or para")
    lines = [checked_text(line, f"line {number}") for number, line in enumerate(value, start=1)]
    if kind.genre != DRAMA:  # whose brackets are stage directions
        lines = NOTE.sub("", NOTE.sub("", "\n".join(lines))).split("\n")  # a note may hold a note, or go over lines
    lines = [line.strip() for line in lines if any(map(str.isalnum, line))]
    text = "".join(lines)
    if not lines or text.rstrip("。") in NO_TEXT:
        raise UserError("no text in paragraphs, content or para")
    if missing := MISSING.search(text):
        raise UserError(f"characters are missing from the text ({missing[0]})")
    if kind.genre != DRAMA and (note := LEFT_NOTE.search(text)):
        raise UserError(f"notes stand in the text ({note[0]})")
    return lines

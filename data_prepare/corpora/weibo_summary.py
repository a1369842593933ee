"""Weibo articles with a summary and readers' comments with their likes: summarise, and comment.

weibo_summary_comments_json.json (upstream: merge.json), one object a line: article, abstract, and comments as
[[text, "likes"], ...], all with spaces between the characters.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keju.data_prepare.corpus import BadRow, Item, Piece
from keju.data_prepare.raw_files import file_pieces, wrong_folder
from keju.data_prepare.raw_json import checked_text, json_lines, text_field
from keju.errors import UserError

VERSION = 1
DOWNLOAD = "merge.json is behind http://t.cn/EAH5JxS, the link in arXiv 1812.05407 (Gao et al. 2019), or ask them"
# Comments have their likes as scores: 0 and more. Answers to other articles are below all of them.
WRONG = ((-1, 2),)
NAMES = ("weibo_summary_comments_json.json", "merge.json")
SUMMARISE = "请用一句话概括下面的微博。\n{}"
COMMENT = "请评论下面的微博。\n{}"
GROUP_CHARACTERS = 100  # of the beginning of an article, which reposts have in common


def pieces(folder: Path, piece_bytes: int) -> list[Piece]:
    paths = [folder / name for name in NAMES if (folder / name).is_file()]
    if not paths:
        raise wrong_folder(folder, " or ".join(NAMES), DOWNLOAD)
    return file_pieces(folder, paths, piece_bytes)


def read(folder: Path, piece: Piece) -> Iterator[Item | BadRow]:
    """The summary of an article and, where it has comments, all of them as one item."""
    for line in json_lines(folder, piece):
        try:
            yield from [line] if isinstance(line, BadRow) else _items(*line)
        except UserError as error:
            yield BadRow(line[0], str(error))


def _items(where: str, fields: dict[str, Any]) -> list[Item]:
    article, abstract = (joined(text_field(fields, name)) for name in ("article", "abstract"))
    if not article or not abstract:
        raise UserError(f'"{"abstract" if article else "article"}" is empty')
    comments = fields.get("comments") or []
    if not isinstance(comments, list):
        raise UserError('"comments" is no list')
    likes: dict[str, int] = {}
    for number, comment in enumerate(comments, start=1):
        text, count = _comment(comment, f'comment {number} of "comments"')
        if text:
            likes[text] = max(count, likes.get(text, 0))
    ranked = sorted(likes.items(), key=lambda comment: -comment[1])
    answers = {
        "summarise": [{"answer": abstract, "score": 1}],
        "comment": [{"answer": text, "score": count} for text, count in ranked],
    }
    prompts = {"summarise": SUMMARISE.format(article), "comment": COMMENT.format(article)}
    group = article[:GROUP_CHARACTERS]
    return [
        Item({"prompt": prompts[task], "answers": answers[task]}, where, group, source=task, task=task)
        for task in prompts
        if answers[task]
    ]


def _comment(comment: Any, name: str) -> tuple[str, int]:
    if not isinstance(comment, list) or len(comment) != 2:
        raise UserError(f"{name} is no pair [text, likes]")
    text, likes = joined(checked_text(comment[0], name)), str(comment[1]) if type(comment[1]) is int else comment[1]
    if not (isinstance(likes, str) and likes.strip().isascii() and likes.strip().isdigit() and len(likes) < 16):
        raise UserError(f"the likes of {name} are no whole number of 0 or more")
    return text, int(likes)


def joined(text: str) -> str:
    """Text without the spaces between its characters; a space between two ASCII words stays."""
    words = text.split()
    parts = words[:1]
    for before, word in zip(words, words[1:], strict=False):
        both_words = (before[-1:] + word[:1]).isascii() and (before[-1:] + word[:1]).isalnum()
        parts.append(f" {word}" if both_words and max(len(before), len(word)) > 1 else word)
    return "".join(parts)

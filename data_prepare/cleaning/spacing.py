"""Spaces and blank lines: no more than the text needs. Text with a fence of code is left as it is."""

from __future__ import annotations

import re

from keju.data_prepare.cleaning.markup import CODE_FENCE

_AT_LINE_END = re.compile(r"(?<![ \t])[ \t]+(?=\n)")
# Indentation is a habit of paragraphs before Chinese, and has a meaning before code and in lists.
_BEFORE_CHINESE = re.compile(r"(?<=\n)[ \t]+(?=[\u3000-\u9fff\uff00-\uffef“‘])")
_IN_LINE = re.compile(r"(?<=[^ \t\n])(?:[ \t]{2,}|\t)(?=[^ \t\n])")
_BLANK_LINES = re.compile(r"\n{3,}")
_SOMETHING = re.compile(r"[ \t][ \t\n]|\t|\n[ \t]|\n\n\n")


def tidy_spaces(text: str) -> str:
    """Single spaces inside lines, none at their ends, at most one blank line, nothing around the text."""
    text = text.strip()
    if not _SOMETHING.search(text) or CODE_FENCE in text:
        return text
    text = _AT_LINE_END.sub("", text)
    text = _BEFORE_CHINESE.sub("", text)
    text = _IN_LINE.sub(" ", text)
    return _BLANK_LINES.sub("\n\n", text)


def tidy_prefix(text: str) -> str:
    """A prefix as "答： " keeps the space at its ends, which the answer goes on from."""
    core = text.strip()
    if not core:
        return text
    start = text.index(core)
    return text[:start] + tidy_spaces(core) + text[start + len(core) :]

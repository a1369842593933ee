"""Runs of one mark: ！！！！！！ says no more than ！！！, and a line of 80 dashes no more than one of 8."""

from __future__ import annotations

import re

_MARKS = re.compile(r"([。，、；：！？!?~～,;])\1{3,}")
_PAIRS = re.compile(r"([…—·])\1{2,}")
_RULES = re.compile(r"([-=_*#.+^@★☆◆◇■□●○▼▲↓↑→])\1{8,}")


def shorten_runs(text: str) -> str:
    """At most three of a mark of punctuation, two of … and —, eight of what draws lines and blanks to fill in."""
    text = _MARKS.sub(r"\1\1\1", text)
    text = _PAIRS.sub(r"\1\1", text)
    return _RULES.sub(lambda found: found[1] * 8, text)

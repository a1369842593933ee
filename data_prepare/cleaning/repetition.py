"""Texts of which one character or one sentence makes up most."""

from __future__ import annotations

import re
from collections import Counter

MIN_CHARS = 20  # a shorter text repeats itself easily: 哈哈哈哈, or the lines of a couplet
MIN_SENTENCES = 4
_END = re.compile(r"[\n。！？!?；;，,]+")
_SPACES = " \n\t"


def repeats_itself(text: str, most: float) -> bool:
    """Whether one character makes up more than `most` of a text without its spaces, or one sentence or clause that is
    there three times more than `most` of its sentences, in characters. Not so of short texts."""
    if len(text) < MIN_CHARS:
        return False
    # Such a character would leave no room for as many others; counting them takes longer.
    if len(set(text)) < 1 + len(_SPACES) + (1 - most) * len(text) and _share_of_commonest(text) > most:
        return True
    sentences = list(filter(None, _END.split(text)))
    if len(sentences) < MIN_SENTENCES or len(set(sentences)) == len(sentences):
        return False
    repeated = max(len(one) * count if count > 2 else 0 for one, count in Counter(sentences).items())
    return repeated > most * sum(map(len, sentences))


def _share_of_commonest(text: str) -> float:
    counts = Counter(text)
    for space in _SPACES:
        counts.pop(space, None)
    return max(counts.values(), default=0) / max(sum(counts.values()), 1)

"""Texts of which one character or one sentence makes up most."""

from __future__ import annotations

import re
from collections import Counter

MIN_CHARS = 20  # a shorter text repeats itself easily: 哈哈哈哈, or the lines of a couplet
MIN_SENTENCES = 4
_END = re.compile(r"[\n。！？!?；;，,]+")


def repeated_share(text: str) -> float:
    """The larger of: the share of the commonest character; the share, in characters, of the commonest sentence or
    clause, if it is there three times. 0.0 for short texts."""
    if len(text) < MIN_CHARS:
        return 0.0
    counts = Counter(text)
    for space in " \n\t":
        counts.pop(space, None)
    total = sum(counts.values())
    share = max(counts.values(), default=0) / max(total, 1)
    sentences = list(filter(None, _END.split(text)))
    if len(sentences) < MIN_SENTENCES or len(set(sentences)) == len(sentences):
        return share
    repeated = max(len(one) * count if count > 2 else 0 for one, count in Counter(sentences).items())
    return max(share, repeated / sum(map(len, sentences)))

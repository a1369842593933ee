"""How much of a row is Chinese."""

from __future__ import annotations

import re
from collections.abc import Sequence

_HAN = "\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003347f"
_HAN_RUN = re.compile(f"[{_HAN}]+")
_HAN_ONE = re.compile(f"[{_HAN}]")
_OTHER_LETTER = re.compile(rf"[^\W\d_{_HAN}]")
# A Latin word counts as one, as an ideograph does, which often is a word; other letters (kana, Arabic) one by one.
_OTHER_WORD = re.compile(rf"[A-Za-z\u00c0-\u024f]+|[^\W\d_A-Za-z\u00c0-\u024f{_HAN}]")


def han_share(texts: Sequence[str]) -> float:
    """Han characters among Han characters, Latin words and other letters; 0.0 where there are none of these."""
    if not any(map(_OTHER_LETTER.search, texts)):
        return float(any(map(_HAN_ONE.search, texts)))
    han = sum(len(run) for text in texts for run in _HAN_RUN.findall(text))
    others = sum(len(_OTHER_WORD.findall(text)) for text in texts)
    return han / (han + others)

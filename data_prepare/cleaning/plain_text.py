"""Texts that most steps of cleaning leave as they are, so that these need not look at them."""

from __future__ import annotations

import re

# Without 锟斤拷, 烫烫烫 and 屯屯屯, which are what is left of wrongly decoded bytes.
_HAN = "\u4e00-\u5c6e\u5c70-\u70ea\u70ec-\u951e\u9520-\u9fff"
_MARKS = "，。！？、；：“”‘’《》「」『』（）〔〕()·・…"
_OTHER = re.compile(
    rf"[^{_HAN}{_MARKS} \n]"  # another character
    rf"|[{_MARKS}]{{3}}|[ \n]{{2}}|\A[ \n]|[ \n]\Z"  # marks or spaces that are too many
    rf"|\A[{_MARKS} \n]*\Z"  # nothing else
)


def is_plain(text: str) -> bool:
    """Whether the text is common Han characters, Chinese marks, single spaces and line ends, and nothing else."""
    return _OTHER.search(text) is None

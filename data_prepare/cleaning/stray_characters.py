"""Characters that say nothing: control and private-use characters, and what is left of wrongly decoded bytes."""

from __future__ import annotations

import re

from keju.data_prepare.cleaning.row_texts import Unusable

_BROKEN = "\ufffd\ue000-\uf8ff\U000f0000-\U000ffffd\U00100000-\U0010fffd"
_CONTROL = "\x00-\x08\x0b-\x1f\x7f-\x9f\ufdd0-\ufdef\ufff9-\ufffc\ufffe\uffff"
_STRAY = re.compile(f"[{_BROKEN}{_CONTROL}]+")
_BROKEN_ONE = re.compile(f"[{_BROKEN}]")
# What GBK makes of U+FFFD and of uninitialised memory, and Latin-1 of UTF-8.
_MOJIBAKE = re.compile("锟斤拷|烫烫烫烫|屯屯屯屯|ï¼Œ|ã€‚|â€œ")


def without_stray_characters(text: str, max_broken_share: float) -> str | Unusable:
    """max_broken_share: more U+FFFD, private-use characters and wrongly decoded ones than this make a text unusable."""
    mojibake = len(_MOJIBAKE.findall(text))
    if not mojibake and not _STRAY.search(text):
        return text
    if 3 * mojibake + len(_BROKEN_ONE.findall(text)) > max_broken_share * len(text):
        return Unusable("broken characters")
    return _STRAY.sub("", text)

"""Traditional characters to simplified ones, with the package opencc (phrases too: 乾坤 stays, 乾燥 becomes 干燥)."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

from keju.errors import UserError

_IDEOGRAPHS = (range(0x3400, 0x4DC0), range(0x4E00, 0xA000))


def simplified(text: str) -> str:
    """Raises UserError if opencc is not installed."""
    traditional, convert = _converter()
    # opencc reads UTF-8, which half of a surrogate pair has none of.
    return convert(text.encode("utf-8", "replace").decode()) if traditional.search(text) else text


@functools.cache
def _converter() -> tuple[re.Pattern[str], Callable[[str], str]]:
    """Finds a character that opencc would change, and the conversion: once a process, for it cannot be pickled."""
    try:
        from opencc import OpenCC
    except ImportError as error:
        raise UserError("true needs the package opencc: pip install opencc", option="simplify") from error
    convert = OpenCC("t2s").convert
    # Between line ends no two characters make up a phrase.
    characters = [chr(code) for codes in _IDEOGRAPHS for code in codes]
    converted = convert("\n".join(characters)).split("\n")
    changed = [old for old, new in zip(characters, converted, strict=True) if old != new]
    return re.compile(f"[{''.join(changed)}]"), convert

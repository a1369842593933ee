"""HTML left over in text: entities, tags, comments. Text with a fence of code is left as it is."""

from __future__ import annotations

import html
import re
from html.entities import html5

from keju.data_prepare.cleaning.unicode_form import normal_form

CODE_FENCE = "```"
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,30});")
_LINE_TAGS = "br|p|div|li|ul|ol|tr|table|tbody|thead|h[1-6]|hr|section|article|blockquote"
_OTHER_TAGS = "a|b|i|u|s|em|strong|span|font|img|td|th|center|sup|sub|small|big|label|input|button|iframe|video|embed"
_REMOVED = re.compile(
    r"<!--.{0,2000}?-->|<(script|style)\b[^<>]{0,500}>.{0,5000}?</\1>"
    rf"|(</?(?:{_LINE_TAGS})(?:\s[^<>]{{0,1000}})?/?>)|</?(?:{_OTHER_TAGS})(?:\s[^<>]{{0,1000}})?/?>",
    re.IGNORECASE | re.DOTALL,
)
_SOMETHING = re.compile(r"&[#a-zA-Z]|<[a-zA-Z/!]")
_MAX_LAYERS = 8  # text that was escaped eight times over is not text


def without_markup(text: str) -> str:
    """Entities become what they stand for, tags that begin a line "\\n", other tags and comments nothing."""
    for _ in range(_MAX_LAYERS):
        if not _SOMETHING.search(text) or CODE_FENCE in text:
            return text
        plain = _ENTITY.sub(_character, text)
        plain = _REMOVED.sub(lambda found: "\n" if found[2] else "", plain)
        if plain == text:
            return text
        text = normal_form(plain)
    return text


def _character(found: re.Match[str]) -> str:
    # html.unescape also takes the beginning of a name for one: &notanentity; for ¬anentity;
    entity = found[0]
    return html.unescape(entity) if entity[1] == "#" or entity[1:] in html5 else entity

"""One way to write each character, without what NFKC destroys.

NFKC would turn Chinese punctuation into ASCII (，to , and （ to () and ② into 2. So this is NFC, which writes composed
letters as one character and compatibility ideographs (U+F900..) as the ideographs they stand for, and besides
- full-width letters, digits and signs (％＋＝＠＃＆＄＿／＼＊) become half-width, and so do ．－ between them;
- half-width, small and Kangxi-radical forms (｡ ﹐ ⼈), which come from PDF files, become the ordinary ones;
- every kind of space becomes U+0020, every kind of line end "\\n";
- characters without width (zero-width spaces, marks of direction, selectors of variants) go, except in emoji;
- halves of surrogate pairs become U+FFFD, which the next step counts.
"""

from __future__ import annotations

import re
import unicodedata

_SPACES = "\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000"
_LINE_ENDS = "\v\f\r\u001c-\u001e\u0085\u2028\u2029"
_WITHOUT_WIDTH = (
    "\u00ad\u061c\u180b-\u180f\u200b\u200c\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufe00-\ufe0e\ufeff"
    "\U000e0100-\U000e01ef"
)
_SURROGATES = "\ud800-\udfff"
_FULL_WIDTH = "０-９Ａ-Ｚａ-ｚ％＋＝＠＃＆＄＿／＼＊"
_PRESENTATION = {
    **dict(zip("｡｢｣､﹐﹑﹒﹔﹕﹖﹗﹙﹚﹛﹜", "。「」、，、．；：？！（）｛｝", strict=True)),
    **{chr(code): unicodedata.normalize("NFKC", chr(code)) for code in (*range(0x2F00, 0x2FD6), 0x2E9F, 0x2EF3)},
}


_SEARCHED = "".join(map(chr, (*range(0x10000), *range(0xE0100, 0xE01F0))))


def _characters(ranges: str) -> list[str]:
    return re.findall(f"[{ranges}]", _SEARCHED)


def _table() -> dict[int, str]:
    table = {
        **dict.fromkeys(_characters(_SPACES), " "),
        **dict.fromkeys(_characters(_LINE_ENDS), "\n"),
        **dict.fromkeys(_characters(_WITHOUT_WIDTH), ""),
        **dict.fromkeys(_characters(_SURROGATES), "\ufffd"),
        **{character: chr(ord(character) - 0xFEE0) for character in _characters(_FULL_WIDTH)},
        **_PRESENTATION,
    }
    return {ord(character): written for character, written in table.items()}


_TABLE = _table()
_TO_WRITE = re.compile(
    f"[{_SPACES}{_LINE_ENDS}{_WITHOUT_WIDTH}{_SURROGATES}{_FULL_WIDTH}{''.join(_PRESENTATION)}\u200d]"
)
_JOINER_WITHOUT_EMOJI = re.compile("\u200d(?![\u2600-\u27bf\U0001f000-\U0001faff])")
_BETWEEN_LETTERS = re.compile("(?<=[0-9A-Za-z])[．－](?=[0-9A-Za-z])")
_ASCII = {"．": ".", "－": "-"}


def normal_form(text: str) -> str:
    """The text in one form; `normal_form(normal_form(text)) == normal_form(text)`."""
    if _TO_WRITE.search(text):
        text = _JOINER_WITHOUT_EMOJI.sub("", text.replace("\r\n", "\n").translate(_TABLE))
    if not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
    if "．" in text or "－" in text:
        text = _BETWEEN_LETTERS.sub(lambda found: _ASCII[found[0]], text)
    return text

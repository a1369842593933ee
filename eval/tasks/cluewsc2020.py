"""CLUEWSC2020: does a pronoun stand for this noun? Each row is a question by itself.

`dev.json` {"text", "target": {"span1_text", "span1_index", "span2_text", "span2_index"}, "label": "true" or "false"}:
span 1 is the noun, span 2 the pronoun; shots from `train.json`.
"""

from __future__ import annotations

from keju.eval.benchmark_files import BadRow, Row
from keju.eval.clue import Clue, asked, clue_folders
from keju.eval.task import Item


class CLUEWSC(Clue):
    version = 1
    folders = clue_folders("cluewsc2020")

    def item(self, row: Row, protocol: str) -> Item:
        text, gold = row.text("text"), row.one_of("label", ("false", "true"))
        (noun, noun_end), (pronoun, pronoun_end) = (_span(row, text, number) for number in (1, 2))
        if protocol == "pangu":
            return Item(f"{text}其中“{pronoun}”", ("不是指", "指的是"), gold, after=f"“{noun}”。")
        # A text may hold the same pronoun several times.
        for end, mark in sorted([(noun_end, "（候选词）"), (pronoun_end, "（代词）")], reverse=True):
            text = text[:end] + mark + text[end:]
        return asked(f"{text}\n上文中的代词“{pronoun}”指的是“{noun}”吗？", ("不是", "是"), gold)


def _span(row: Row, text: str, number: int) -> tuple[str, int]:
    """The words of a span, and where they end in the text."""
    target = row.fields.get("target")
    target = target if isinstance(target, dict) else {}
    words, start = target.get(f"span{number}_text"), target.get(f"span{number}_index")
    if not words or not isinstance(start, int) or text[start : start + len(words)] != words:
        raise BadRow(f'"target": span {number} does not stand in the text where its index says')
    return words, start + len(words)


TASK = CLUEWSC()

"""CSL: are all of these keywords those of the paper with this abstract?

`dev.json` {"id", "abst", "keyword": [...], "label": "0" or "1"}, shots from `train.json`.
"""

from __future__ import annotations

from keju.eval.benchmark_files import BadRow, Row
from keju.eval.clue import Clue, asked, clue_folders
from keju.eval.task import Item


class CSL(Clue):
    version = 1
    folders = clue_folders("csl")

    def item(self, row: Row, protocol: str) -> Item:
        abstract, keywords = row.text("abst"), row.fields.get("keyword")
        gold = row.one_of("label", ("0", "1"))
        if not isinstance(keywords, list) or not keywords or not all(isinstance(word, str) for word in keywords):
            raise BadRow('"keyword" must be a list of texts')
        if protocol == "pangu":
            text = f"摘要:{abstract}，关键词:{'+'.join(keywords)}"
            return Item(text, ("不是", "是"), gold, after="真实关键词")
        return asked(f"摘要：{abstract}\n关键词：{'、'.join(keywords)}\n它们都是真实的关键词吗？", ("不是", "是"), gold)


TASK = CSL()

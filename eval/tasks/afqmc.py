"""AFQMC: do two questions to Ant Financial mean the same? 69% of the dev rows are "0".

`dev.json` {"sentence1", "sentence2", "label": "0" or "1"}, shots from `train.json`.
"""

from __future__ import annotations

from keju.eval.benchmark_files import Row
from keju.eval.clue import Clue, asked, clue_folders
from keju.eval.task import Item


class AFQMC(Clue):
    version = 1
    folders = clue_folders("afqmc")

    def item(self, row: Row, protocol: str) -> Item:
        first, second, gold = row.text("sentence1"), row.text("sentence2"), row.one_of("label", ("0", "1"))
        if protocol == "pangu":
            return Item("下面两个句子语义", ("不同", "相同"), gold, after=f":{first}。{second}")
        return asked(f"文本1：{first}\n文本2：{second}\n这两段文本的意思是否相同？", ("不同", "相同"), gold)


TASK = AFQMC()

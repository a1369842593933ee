"""TNEWS: which of 15 sections does a headline belong to? `pangu` chooses among 4 of them.

`dev.json` {"sentence", "label": "100" ..., "label_desc", "keywords"}, shots from `train.json`.
"""

from __future__ import annotations

from keju.eval.benchmark_files import Row
from keju.eval.clue import Clue, asked, clue_folders, shortlist
from keju.eval.task import Item

SECTIONS = {
    "100": "故事", "101": "文化", "102": "娱乐", "103": "体育", "104": "财经",
    "106": "房产", "107": "汽车", "108": "教育", "109": "科技", "110": "军事",
    "112": "旅游", "113": "世界", "114": "股票", "115": "农业", "116": "游戏",
}  # fmt: skip


class TNEWS(Clue):
    version = 1
    folders = clue_folders("tnews")

    def item(self, row: Row, protocol: str) -> Item:
        headline, gold = row.text("sentence"), row.one_of("label", tuple(SECTIONS))
        names = tuple(SECTIONS.values())
        if protocol == "pangu":
            names, gold = shortlist(names, gold, headline)
            return Item("这是关于", names, gold, after=f"的文章:{headline}")
        return asked(f"新闻标题：{headline}\n这条新闻属于哪一类？", names, gold)


TASK = TNEWS()

"""Long names and formulas that Chinese texts use as one word: that two texts share one says nothing.

They are as long as the runs by which copies of evaluation sets are found: 全国人民代表大会常务委员会 is one run of 13.
"""

from __future__ import annotations

import re

_PHRASES = (
    "全国人民代表大会常务委员会",
    "全国人民代表大会",
    "全国人大常委会",
    "地方各级人民代表大会",
    "人民代表大会",
    "常务委员会",
    "中国人民政治协商会议",
    "中华人民共和国",
    "中国共产党",
    "中央委员会",
    "中央人民政府",
    "全国代表大会",
    "最高人民法院",
    "最高人民检察院",
    "自治区人民政府",
    "人民政府",
    "国务院",
    "习近平",
    "新时代中国特色社会主义思想",
    "中国特色社会主义",
    "社会主义核心价值观",
    "社会主义市场经济体制",
    "马克思列宁主义",
    "马克思主义",
    "毛泽东思想",
    "邓小平理论",
    "三个代表重要思想",
    "科学发展观",
    "改革开放",
    "中华民族伟大复兴",
    "全面建成小康社会",
    "人类命运共同体",
    "全国重点文物保护单位",
    "国家级风景名胜区",
    "世界文化遗产",
    "第二次世界大战",
    "第一次世界大战",
    "香港特别行政区",
    "澳门特别行政区",
)
_PHRASE = re.compile("|".join(sorted(_PHRASES, key=len, reverse=True)))
_PART_AT_END = re.compile(
    "^(?:{})|(?:{})$".format(
        "|".join(phrase[start:] for phrase in _PHRASES for start in range(1, len(phrase) - 2)),
        "|".join(phrase[:end] for phrase in _PHRASES for end in range(len(phrase) - 1, 2, -1)),
    )
)


def without_set_phrases(text: str) -> str:
    """The text without the phrases, and without what is left of one (three characters or more) at either end."""
    return _PHRASE.sub("", _PART_AT_END.sub("", text) if not _PHRASE.fullmatch(text) else text)

"""Steps that say so do leave plain texts as they are, and most texts are plain."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keju.data_prepare.cleaning.passes import passes
from keju.data_prepare.cleaning.plain_text import is_plain
from keju.data_prepare.cleaning.row_texts import KINDS, RowText
from keju.data_prepare.cleaning.settings import CleaningSettings

RAW = Path(__file__).resolve().parents[4] / "shared" / "data" / "raw"
SKIPPED = [one for one in passes(CleaningSettings().resolved(curated=False), None) if one.leaves_plain_texts]
# What a step does something about, in the middle of what none does.
PIECES = [
    *(
        "好",
        "学而时习之",
        "锟斤拷",
        "烫烫烫烫",
        "屯屯屯屯",
        "微信",
        "编辑：",
        "，",
        "。",
        "！！",
        "…",
        "……",
        "·",
        "—",
        "（",
        "《",
    ),
    *(" ", "  ", "\n", " \n", "\n\n", "\u3000", "\t", "\u200b", "\uf900", "⼈", "１", "1", "a", "&", "<b>", "\ufffd"),
]


def texts():
    return st.one_of(
        st.text(),
        st.lists(st.sampled_from(PIECES)).map("".join),
        st.text("学而时习之锟斤拷烫屯，。！《》「」（）·・…\n ", max_size=12),
    )


@settings(max_examples=600)
@given(texts(), st.sampled_from(KINDS))
def test_plain_texts_stay_as_they_are(text, kind):
    for one in SKIPPED if is_plain(text) else ():
        found, changes = [RowText(kind, text, "text")], Counter()
        if one.name != "language" or kind in ("text", "prompt", "answer"):
            assert one.run(found, changes) is False and [text] == [it.text for it in found] and not changes, one.name


@pytest.mark.parametrize(
    "text",
    [
        "",
        " 好",
        "好\n",
        "好\n\n好",
        "好  好",
        "。。",
        "好。。。。",
        "好1",
        "锟斤拷",
        "a",
        "好·····",
        "好\u3000好",
        "\uf900",
    ],
)
def test_others_are_looked_at(text):
    assert not is_plain(text)


@pytest.mark.skipif(not RAW.is_dir(), reason="../shared/data/raw is not there")
def test_most_texts_are_plain():
    lines = [
        line.partition("：")[2].strip()
        for path in (RAW / "Classical-Modern" / "bitext").iterdir()
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.strip()
    ]
    assert sum(map(is_plain, lines)) > 0.9 * len(lines)

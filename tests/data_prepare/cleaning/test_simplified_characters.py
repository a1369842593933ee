"""Traditional text becomes simplified, by phrases; simplified text is not touched."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keju.data_prepare.cleaning import simplified_characters
from keju.data_prepare.cleaning.simplified_characters import simplified

pytest.importorskip("opencc", reason="opencc is not installed")


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("漢字轉換", "汉字转换"),
        ("乾坤與乾燥", "乾坤与干燥"),
        ("皇后在後面", "皇后在后面"),
        ("简体字不变", "简体字不变"),
    ],
)
def test_phrases(text, written):
    assert simplified(text) == written


def test_poems_of_the_tang(shared):
    path = sorted((shared / "data/raw/chinese-poetry/shi").glob("poet.tang.*.json"))[0]
    texts = ["\n".join(poem["paragraphs"]) for poem in json.loads(path.read_text(encoding="utf-8"))]
    written = [simplified(text) for text in texts]
    assert sum(new != old for old, new in zip(texts, written, strict=True)) > 0.9 * len(texts)
    assert all(len(new) == len(old) for old, new in zip(texts, written, strict=True))
    assert not set("會風來時無爲雲") & set("".join(written))


def test_simplified_text_never_reaches_opencc(shared, monkeypatch):
    traditional, convert = simplified_characters._converter()
    seen = []
    monkeypatch.setattr(
        simplified_characters, "_converter", lambda: (traditional, lambda text: seen.append(text) or convert(text))
    )
    lines = (shared / "data/pretrain/CLUECorpusSmall_sampled.txt").read_text(encoding="utf-8").split("\n")
    for line in lines:
        simplified(line)
    assert 0 < len(seen) < 0.2 * len(lines)


@given(st.text(st.sampled_from("乾坤燥後后著作執于於餘余馀隻只\ud800\0é漢a")))
def test_a_second_time_changes_nothing_and_nothing_raises(text):
    once = simplified(text)
    assert simplified(once) == once

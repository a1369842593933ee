"""Characters are written one way, and what NFKC would destroy stays."""

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keju.data_prepare.cleaning.unicode_form import normal_form

TRICKY = st.text(
    st.sampled_from("aeK１Ａ．－\u200b\u200d\u0301\u0338\u3000\r\n⼈\uf900\ufe0f👨❤<>=＜／ ﹐\ud800é\u212a")
)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("“你好”，（世界）！《书》——……①②㎏～￥", None),
        ("２０１６年３月，ＧＤＰ增长６．７％", "2016年3月，GDP增长6.7%"),
        ("０１０－１２３４５６７８；句子．－", "010-12345678；句子．－"),
        ("abc＠ｑｑ．ｃｏｍ", "abc@qq.com"),
        ("\uf900\u2f08", "豈人"),
        ("cafe\u0301", "café"),
        ("中\u200b文\ufeff\u00ad字", "中文字"),
        ("\u3000\u3000段落\u00a0一", "  段落 一"),
        ("一\r\n二\r三\u2028四", "一\n二\n三\n四"),
        ("｢半角｣､｡", "「半角」、。"),
        ("👨\u200d👩\u200d👧 ❤\ufe0f", None),
        ("\ud83d半个", "\ufffd半个"),
        ("葛\U000e0100城市", "葛城市"),
    ],
)
def test_characters(text, written):
    assert normal_form(text) == (text if written is None else written)


@given(st.one_of(st.text(), TRICKY, st.text(st.characters())))
@example("\u2126\u0301\u200d\u200d👨")
def test_a_second_time_changes_nothing(text):
    once = normal_form(text)
    assert normal_form(once) == once
    assert unicodedata.is_normalized("NFC", once)
    once.encode("utf-8")


def test_clean_text_is_handed_back_as_it_is(shared):
    lines = (shared / "data/pretrain/CLUECorpusSmall_sampled.txt").read_text(encoding="utf-8").split("\n")
    same = [line for line in lines if normal_form(line) == line]
    assert 0.9 * len(lines) < len(same) < len(lines)
    assert all(normal_form(line) is line for line in same)

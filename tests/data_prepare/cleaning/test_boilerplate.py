"""Sentences around web texts go, sentences about them stay."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keju.data_prepare.cleaning.boilerplate import MAX_CHARS, without_boilerplate

NEWS = "平罗县教体局局长在会上讲话。"


@pytest.mark.parametrize(
    "boilerplate",
    ["（责任编辑：张三）", "责任编辑：王晓明", "点击查看更多", "【编辑:王忠会】", "本文来自微信公众号“某某”。",
     "版权归原作者所有，如有侵权请联系删除。", "如需转载请注明作者及出处。", "扫描二维码关注我们",
     "更多精彩内容，请关注公众号：abc", "长按二维码，选择“识别图中二维码”进行关注。", "文章来源：现代快报",
     "上一篇：某某", "（原标题：某某讲话）"],
)  # fmt: skip
def test_boilerplate_goes_and_the_text_stays(boilerplate):
    assert without_boilerplate(f"{NEWS}{boilerplate}") == NEWS
    assert without_boilerplate(f"{boilerplate}\n{NEWS}") == NEWS
    assert without_boilerplate(boilerplate) == ""


@pytest.mark.parametrize(
    "text",
    [
        NEWS,
        "他是这本书的责任编辑，编辑部有十人。",
        "这条新闻的来源不明，版权法保护作者。",
        "扫码支付从而大大提升了顾客的消费体验。",
        "微信公众号数量超过1500万。",
        "本文研究了稻米的来源。",
        "她关注了很多公众号的文章，" + "并且每天都认真地读，" * 8 + "还会点击查看更多。",
    ],
)
def test_text_that_is_about_such_things_stays(text):
    assert without_boilerplate(text) == text


def test_only_short_sentences_are_boilerplate():
    sentence = "责任编辑：" + "张" * (MAX_CHARS - 6) + "。"
    assert without_boilerplate(NEWS + sentence) == NEWS
    assert without_boilerplate(NEWS + "张" + sentence) == NEWS + "张" + sentence


def test_web_texts(shared):
    lines = (shared / "data/pretrain/CLUECorpusSmall_sampled.txt").read_text(encoding="utf-8").split("\n")
    changed = [(line, without_boilerplate(line)) for line in lines if without_boilerplate(line) != line]
    assert 20 < len(changed) < 0.03 * len(lines)
    assert sum(len(new) for _, new in changed) > 0.8 * sum(len(line) for line, _ in changed)


@given(
    st.lists(st.sampled_from([NEWS, "责任编辑：", "张三", "。", "”", "\n", "（编辑：李", "）", "点击查看更多"])).map(
        "".join
    )
)
def test_a_second_time_changes_nothing(text):
    once = without_boilerplate(text)
    assert without_boilerplate(once) == once

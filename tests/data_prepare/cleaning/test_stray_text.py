"""Markup, control characters, runs of marks and spaces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keju.data_prepare.cleaning.markup import without_markup
from keju.data_prepare.cleaning.repeated_marks import shorten_runs
from keju.data_prepare.cleaning.row_texts import Unusable
from keju.data_prepare.cleaning.spacing import tidy_prefix, tidy_spaces
from keju.data_prepare.cleaning.stray_characters import without_stray_characters


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("DS&nbsp;4 特别版&#34;官图&#x22;", 'DS 4 特别版"官图"'),
        ("&amp;lt;人民&amp;gt;", "<人民>"),
        ('<p class="a">第一段</p><br/>第二段', "\n第一段\n\n第二段"),
        ('<a href="x">链接</a><!-- 注释 --><script>alert(1)</script>正文', "链接正文"),
        ("a<b，且 c>d；x < 3 & y > 4；AT&T；<手机号>；List<String>", None),
        ("写法如下：\n```\n<br>&nbsp;\n```", None),
        ("&notanentity; &;", None),
    ],
)
def test_markup(text, plain):
    assert without_markup(text) == (text if plain is None else plain)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("正文\x00\x1f\x7f\u0085\ue000", Unusable("broken characters")),
        ("正文" * 60 + "\x00\ue000", "正文" * 60),
        ("第一行\n第二行\t列", "第一行\n第二行\t列"),
        ("锟斤拷锟斤拷 你好", Unusable("broken characters")),
        ("\ufffd\ufffd你好", Unusable("broken characters")),
    ],
)
def test_stray_characters(text, expected):
    assert without_stray_characters(text, 0.01) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  第一行  \n\n\n\n　　第二行\t列   列 \n", "第一行\n\n　　第二行 列 列"),
        ("段落\n    段落", "段落\n段落"),
        ("列表：\n  - 项  目\n    - 项", "列表：\n  - 项 目\n    - 项"),
        ("代码\n```\na  =  1\n\n\n\nb\n```", "代码\n```\na  =  1\n\n\n\nb\n```"),
        ("北京 上海", "北京 上海"),
    ],
)
def test_spaces(text, expected):
    assert tidy_spaces(text) == expected


def test_a_prefix_keeps_the_space_at_its_ends():
    assert tidy_prefix("\n答：  好 ") == "\n答： 好 "
    assert tidy_prefix(" ") == " "


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("好！！！！！！", "好！！！"),
        ("……真的？？", "……真的？？"),
        ("等等…………———————", "等等……——"),
        ("-" * 80 + "\n|---|---|\n____", "-" * 8 + "\n|---|---|\n____"),
        ("哈哈哈哈哈哈1000000", "哈哈哈哈哈哈1000000"),
    ],
)
def test_runs_of_marks(text, expected):
    assert shorten_runs(text) == expected


PIECES = st.lists(
    st.sampled_from(
        ["&", "amp;", "lt;", "nbsp;", "#1", "2;", "<", "b", "br", "/", ">", "<!--", "-->", "script", " ", "\t", "\n",
         "　", "。", "！", "…", "-", "中", "\ue000", "\ufffd", "\x01", "锟斤拷", "```", '"', "p"]
    )
).map("".join)  # fmt: skip


@pytest.mark.parametrize(
    "step", [without_markup, tidy_spaces, shorten_runs, lambda text: without_stray_characters(text, 1.0)]
)
@given(text=st.one_of(st.text(), PIECES))
def test_a_second_time_changes_nothing(step, text):
    once = step(text)
    assert step(once) == once


def test_nested_tags_take_no_long_time():
    assert len(without_markup("<b" * 20_000 + ">" * 20_000)) > 10_000
    assert without_markup("<!--" * 20_000 + "<script " * 20_000)

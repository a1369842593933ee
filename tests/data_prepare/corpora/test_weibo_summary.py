"""Weibo articles in the form that public loaders of merge.json read; the file itself was not at hand."""

from __future__ import annotations

import json

import pytest
from corpus_reading import answers, read_corpus

from keju.data_prepare.corpora.weibo_summary import joined
from keju.data_prepare.corpus import BadRow, Item

ARTICLE = "今 天 上 午 ， 本 市 地 铁 1 0 号 线 开 通 ， 首 日 客 流 超 过 5 0 万 。"
ROW = {
    "article": ARTICLE,
    "abstract": "地 铁 1 0 号 线 今 开 通",
    "comments": [["好 方 便", "7"], ["等 了 五 年", "120"], ["好 方 便", "3"], ["票 价 呢 ？", 0], [" ", "9"]],
}


def write(folder, *rows, name: str = "weibo_summary_comments_json.json"):
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / name).write_text("\n".join(lines), encoding="utf-8")


@pytest.mark.parametrize("name", ["weibo_summary_comments_json.json", "merge.json"])
def test_an_article(tmp_path, name):
    write(tmp_path, ROW, {**ROW, "comments": []}, name=name)
    (summary, comment, alone), bad = read_corpus("weibo_summary", tmp_path)
    article = "今天上午，本市地铁10号线开通，首日客流超过50万。"
    assert bad == []
    assert summary == Item(
        {
            "prompt": f"请用一句话概括下面的微博。\n{article}",
            "answers": [{"answer": "地铁10号线今开通", "score": 1}],
        },
        f"{name}:1",
        group=article,
        source="summarise",
        task="summarise",
    )
    assert comment.row["prompt"] == f"请评论下面的微博。\n{article}" and comment.task == "comment"
    assert answers(comment) == [("等了五年", 120), ("好方便", 7), ("票价呢？", 0)]
    assert comment.group == article and (alone.task, alone.where) == ("summarise", f"{name}:2")


def test_bad_articles(tmp_path):
    comments = [
        [["好"]],
        [["好", "-1"]],
        [["好", "三"]],
        [["好", 1.5]],
        [[5, "1"]],
        ["好"],
        [["好", "9" * 20]],
        [["好", None]],
    ]
    rows = [{**ROW, "comments": value} for value in comments]
    write(tmp_path, *rows, {**ROW, "comments": "好"}, {**ROW, "abstract": ""}, {**ROW, "article": " "}, "{", ROW)
    items, bad = read_corpus("weibo_summary", tmp_path)
    assert [item.where.split(":")[1] for item in items] == ["13", "13"]
    no_number, no_pair = (
        'the likes of comment 1 of "comments" are no whole number of 0 or more',
        "is no pair [text, likes]",
    )
    pair = f'comment 1 of "comments" {no_pair}'
    assert [row.reason for row in bad[:-1]] == [
        *(
            pair,
            no_number,
            no_number,
            no_number,
            'comment 1 of "comments" is no text but int',
            pair,
            no_number,
            no_number,
        ),
        *('"comments" is no list', '"abstract" is empty', '"article" is empty'),
    ]
    assert bad[-1] == BadRow(
        "weibo_summary_comments_json.json:12",
        "malformed JSON (Expecting property name enclosed in double quotes at column 2)",
    )


@pytest.mark.parametrize(
    "text, expected",
    [
        ("中 国 A p p l e 手 机", "中国Apple手机"),
        ("买 Apple Watch 吧", "买Apple Watch吧"),
        ("1 0 万 ！ ok", "10万！ok"),
        ("", ""),
    ],
)
def test_spaces_between_characters(text, expected):
    assert joined(text) == expected

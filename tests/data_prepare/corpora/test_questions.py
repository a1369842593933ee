"""Questions and answers: zhidao (several replies) and baike_qa (one)."""

from __future__ import annotations

import json

import pytest
from corpus_reading import answers, read_corpus

from keju.data_prepare.corpora import zhidao
from keju.data_prepare.corpus import BadRow, Item

NOT_ACCEPTED = "none of the replies to this question is marked as best"


def write_csv(folder, text: str, name: str = "law_filter.csv"):
    (folder / name).write_text("title,question,reply,is_best\n" + text, encoding="utf-8")


def test_zhidao_files(shared):
    items, bad = read_corpus("zhidao", shared / "data/derived/raw/zhidao")
    assert len(items) + len(bad) == 140 and {row.reason for row in bad} == {NOT_ACCEPTED}
    assert len(items) == 75 and len({item.source for item in items}) == 7
    assert bad[0].where == "anhuidianxinzhidao_filter.csv:2"
    title = "为什么不能同时用两个电信卡"
    reply = "您好不可以的，目前推出的手机都是不能同时支持两张电信手机卡的，即使是全网通手机也只能在其中的..."
    assert items[0] == Item(
        {"prompt": title, "answers": [{"answer": reply, "score": 1}]},
        "anhuidianxinzhidao_filter.csv:3",
        group=title,
        source="anhuidianxinzhidao",
        keys=("anhuidianxinzhidao",),
    )
    quoted = next(item for item in items if item.where == "lawzhidao_filter.csv:3")
    assert quoted.row["prompt"] == "买保险,一定要找代理人吗,直接去保险公司买不可以吗?"


def test_replies_to_one_question_are_one_item(tmp_path):
    rows = [
        "甲,,一,0",
        "甲,,二,1",
        "甲,,一,0",
        "乙,乙说更多,三,1",
        '丙,"多\n行",四,1',
        "丙,,四,0",
        "甲,,五,1",
        "丁,,六,0",
    ]
    write_csv(tmp_path, "\n".join(rows))
    items, bad = read_corpus("zhidao", tmp_path)
    assert [(item.where, item.group, item.row["prompt"], answers(item)) for item in items] == [
        ("law_filter.csv:2", "甲", "甲", [("二", 1), ("一", 0)]),
        ("law_filter.csv:5", "乙", "乙说更多", [("三", 1)]),
        ("law_filter.csv:6", "丙", "丙\n多\n行", [("四", 1)]),
        ("law_filter.csv:9", "甲", "甲", [("五", 1)]),
    ]
    assert items[0].keys == ("law",)
    assert bad == [BadRow("law_filter.csv:10", NOT_ACCEPTED)]


def test_bad_zhidao_rows(tmp_path):
    write_csv(tmp_path, '甲,,一,1\n,,二,1\n乙,, ,1\n丙,,三,2\n丁,四,1\n戊,"五,1\n己,,六,1\n')
    items, bad = read_corpus("zhidao", tmp_path)
    assert [item.group for item in items] == ["甲", "己"]
    assert [row.where.split(":")[1] for row in bad] == ["3", "4", "5", "6", "7"]
    assert [row.reason.split(";")[0][:30] for row in bad[:3]] == [
        "the title is empty",
        "the reply is empty",
        "is_best must be 0 or 1, not '2",
    ]


def test_a_csv_of_something_else(tmp_path):
    (tmp_path / "a.csv").write_text("label,review\n1,好\n", encoding="utf-8")
    (piece,) = zhidao.pieces(tmp_path, 1)
    with pytest.raises(
        ValueError, match=r"a\.csv:1: expected the columns title,question,reply,is_best, found 'label,rev"
    ):
        list(zhidao.read(tmp_path, piece))


def test_baike_qa_rows(shared):
    items, bad = read_corpus("baike_qa", shared / "data/derived/raw/baike_qa2019")
    assert (len(items), bad) == (3, [])
    question = "人站在地球上为什么没有头朝下的感觉"
    answer = "地球上重力作用一直是指向球心的，因此\n只要头远离球心，人们就回感到头朝上。"
    assert items[0] == Item(
        {"prompt": question, "answers": [{"answer": answer, "score": 1}]},
        "baike_qa_valid.json:1",
        group=question,
        source="教育/科学",
        keys=("教育/科学-理工学科-地球科学", "教育/科学"),
    )
    assert items[1].row["prompt"].startswith("我的小baby-辛巴。") and items[1].group == "我的小baby"
    assert answers(items[2])[0][0].startswith("你好！\n\n当然") and "\r" not in answers(items[2])[0][0]
    assert items[2].keys == ("生活知识", "生活知识")


def test_baike_qa_pieces_and_bad_rows(tmp_path):
    rows = [{"title": f"问{number}", "desc": "详情", "answer": "答", "category": "甲-乙"} for number in range(40)]
    rows += [rows[0] | {"answer": " \r\n"}, rows[0] | {"title": "", "desc": None}, rows[0] | {"answer": 5}]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows] + ["[1]", "{"]
    (tmp_path / "baike_qa_train.json").write_text("\n".join(lines), encoding="utf-8")
    items, bad = read_corpus("baike_qa", tmp_path)
    assert [item.row["prompt"] for item in items] == [f"问{number}\n详情" for number in range(40)]
    assert [(row.where.split(":")[1], row.reason) for row in bad] == [
        ("41", '"answer" is empty'),
        ("42", '"title" and "desc" are empty'),
        ("43", '"answer" is no text but int'),
        ("44", "expected a JSON object, found list"),
        ("45", "malformed JSON (Expecting property name enclosed in double quotes at column 2)"),
    ]
    assert read_corpus("baike_qa", tmp_path, 200) == (items, bad)

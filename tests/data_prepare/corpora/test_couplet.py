"""Couplets in the three layouts that people have, and what is wrong with others."""

from __future__ import annotations

import pytest
from corpus_reading import answers, read_corpus

from keju.data_prepare.corpora import couplet
from keju.data_prepare.corpus import BadRow, Item

FIRST = ("腾飞上铁，锐意改革谋发展，勇当千里马", "和谐南供，安全送电保畅通，争做领头羊")


def write(folder, first: str, second: str):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "in.txt").write_text(first, encoding="utf-8")
    (folder / "out.txt").write_text(second, encoding="utf-8")


@pytest.mark.parametrize(
    "path, count, where", [("raw/couplet", 4000, "test/in.txt:1"), ("raw/couplet_clean", 3834, "test/in.txt:1")]
)
def test_the_data_set(shared, path, count, where):
    items, bad = read_corpus("couplet", shared / "data" / path)
    assert (len(items), bad) == (count, [])
    assert items[0] == Item(
        {"prompt": f"请根据上联对出下联。\n上联：{FIRST[0]}", "answers": [{"answer": FIRST[1], "score": 1}]},
        where,
        group=FIRST[0],
        source="test",
        keys=("18",),
        content=FIRST[0],
    )
    assert all(len(item.group) == len(answers(item)[0][0]) == int(item.keys[0]) for item in items)


def test_both_lines_in_one_are_the_same_couplets(shared):
    items, bad = read_corpus("couplet", shared / "data/derived/raw")
    apart, _ = read_corpus("couplet", shared / "data/raw/couplet")
    assert (len(items), bad, items[0].where) == (4000, [], "couplets.txt:1")
    assert [item.row for item in items] == [item.row for item in apart]


def test_pieces_find_their_second_lines(shared):
    folder = shared / "data/raw/couplet"
    assert len(couplet.pieces(folder, 10_000)) == 16
    assert read_corpus("couplet", folder, 10_000) == read_corpus("couplet", folder)


def test_the_files_themselves_and_both_folders(tmp_path):
    write(tmp_path / "plain", "天 地", "山 水")
    assert [item.source for item in read_corpus("couplet", tmp_path / "plain")[0]] == [""]
    for split in ("train", "test"):
        write(tmp_path / "couplet" / split, "天 地\n\n", "山 水\n\n")
    assert [item.where for item in read_corpus("couplet", tmp_path)[0]] == [
        "couplet/test/in.txt:1",
        "couplet/train/in.txt:1",
        "plain/in.txt:1",
    ]


def test_bad_couplets(tmp_path):
    write(tmp_path, "天 地\n春 风\n\n日\n", "山 水 长\n\n花\n月\n")
    (tmp_path / "couplets.txt").write_bytes("天地\t山水\n天地山水\n天地人山水\n".encode() + b"\xff\n1\t \n")
    items, bad = read_corpus("couplet", tmp_path)
    assert [item.where for item in items] == ["couplets.txt:1", "in.txt:4"]
    joined = "expected two lines of one length with one character between them that is no letter"
    assert bad == [
        BadRow("couplets.txt:2", joined),
        BadRow("couplets.txt:3", joined),
        BadRow("couplets.txt:4", "not UTF-8 text (invalid start byte at byte 0 of the line)"),
        BadRow("couplets.txt:5", "the second line is empty"),
        BadRow("in.txt:1", "the first line has 2 characters, the second 3"),
        BadRow("in.txt:2", "the second line is empty"),
        BadRow("in.txt:3", "the first line is empty"),
    ]


def test_a_bad_second_line_is_named_in_its_file(tmp_path):
    write(tmp_path, "天\n地\n", "山\n\0\n")
    assert read_corpus("couplet", tmp_path)[1] == [BadRow("out.txt:2", "a NUL byte in the text")]


def test_files_that_do_not_belong_together(tmp_path):
    write(tmp_path, "天\n地\n", "山\n")
    with pytest.raises(ValueError, match=r"in\.txt has 2 lines, .*out\.txt has 1: "):
        couplet.pieces(tmp_path, 1)
    (tmp_path / "out.txt").unlink()
    with pytest.raises(ValueError, match=r"out\.txt: no such file; it must have the second lines to "):
        couplet.pieces(tmp_path, 1)


def test_gbk_second_lines(tmp_path, caplog):
    write(tmp_path, "天 地\n", "")
    (tmp_path / "out.txt").write_bytes("莺 声\n".encode("gbk"))
    (item,), bad = read_corpus("couplet", tmp_path)
    assert answers(item) == [("莺声", 1)] and not bad
    assert f"{tmp_path}/out.txt: this is GBK (GB18030)" in caplog.messages[0]

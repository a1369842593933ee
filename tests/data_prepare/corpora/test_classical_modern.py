"""Pairs of classical and modern Chinese, by book: both layouts, and halves of pairs."""

from __future__ import annotations

from collections import Counter

from corpus_reading import answers, read_corpus

from keju.data_prepare.corpus import BadRow, Item

CLASSICAL, MODERN = "又尝梦履众星而行，觉而内喜。", "又曾经梦见自己穿着很多星辰做成的鞋在赶路，醒来时暗自高兴。"


def test_the_first_version(shared):
    items, bad = read_corpus("classical_modern", shared / "data/raw/Classical-Modern")
    assert (len(items), bad) == (2 * 8000, [])
    assert items[:2] == [
        Item(
            {"prompt": f"把下面的文言文翻译成现代汉语。\n{CLASSICAL}", "answers": [{"answer": MODERN, "score": 1}]},
            "bitext/北齐书:1",
            group="北齐书 0",
            source="北齐书",
            task="to modern",
            keys=("北齐书",),
            content=CLASSICAL,
        ),
        Item(
            {"prompt": f"把下面的现代汉语翻译成文言文。\n{MODERN}", "answers": [{"answer": CLASSICAL, "score": 1}]},
            "bitext/北齐书:1",
            group="北齐书 0",
            source="北齐书",
            task="to classical",
            keys=("北齐书",),
            content=MODERN,
        ),
    ]
    assert items[2].where == "bitext/北齐书:4"
    assert set(Counter(item.group for item in items).values()) == {100}
    assert Counter(item.source for item in items)["史记"] == 2000


def test_the_version_of_today(shared):
    items, bad = read_corpus("classical_modern", shared / "data/raw/Classical-Modern_v2")
    assert (len(items), bad) == (2 * 1324, [])
    assert Counter(item.source for item in items) == {"论语": 2342, "大学章句集注": 194, "三十六计": 112}
    first = next(item for item in items if item.group == "论语/学而篇")
    assert first.where == "双语数据/论语/学而篇/bitext.txt:1"
    assert first.row["prompt"].endswith("\n子曰： 学而时习之，不亦说乎？")
    assert answers(first) == [("孔子说： 学了知识然后按一定的时间复习它，不也是很愉快吗？", 1)]
    deeper = next(item for item in items if item.source == "三十六计")
    assert (deeper.group, deeper.keys) == ("三十六计/并战计/上屋抽梯", ("三十六计",))


def test_both_versions_side_by_side_and_other_files(tmp_path):
    for path in ("bitext/史记", "双语数据/论语/bitext.txt", "bitext/README.md", "双语数据/论语/source.txt"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("古文:何者？\r\n现代文：为什么？", encoding="utf-8")
    items, bad = read_corpus("classical_modern", tmp_path)
    assert [(item.where, item.group) for item in items[::2]] == [
        ("bitext/史记:1", "史记 0"),
        ("双语数据/论语/bitext.txt:1", "论语"),
    ]
    assert bad == [] and answers(items[0]) == [("为什么？", 1)]


def test_halves_of_pairs(tmp_path):
    lines = ["古文：一", "", "古文：二", "现代文：二", "现代文：三", "标题", "古文：四", "标题", "古文：", "现代文：五"]
    lines += ["古文：六", "现代文： ", "古文：七", "\0", "古文：八", "", "现代文：八", "古文：九"]
    (tmp_path / "bitext").mkdir()
    (tmp_path / "bitext/书").write_text("\n".join(lines), encoding="utf-8")
    items, bad = read_corpus("classical_modern", tmp_path)
    assert [item.where for item in items[::2]] == ["bitext/书:3", "bitext/书:15"]
    neither = "a line begins with neither 古文： nor 现代文："
    assert bad == [
        BadRow("bitext/书:1", "古文 without 现代文"),
        BadRow("bitext/书:5", "现代文 without 古文"),
        BadRow("bitext/书:6", neither),
        BadRow("bitext/书:7", "古文 without 现代文"),
        BadRow("bitext/书:8", neither),
        BadRow("bitext/书:9", "古文 is empty"),
        BadRow("bitext/书:10", "现代文 without 古文"),
        BadRow("bitext/书:11", "古文 without 现代文"),
        BadRow("bitext/书:12", "现代文 is empty"),
        BadRow("bitext/书:13", "古文 without 现代文"),
        BadRow("bitext/书:14", "a NUL byte in the text"),
        BadRow("bitext/书:18", "古文 without 现代文"),
    ]

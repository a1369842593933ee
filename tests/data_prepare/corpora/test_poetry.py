"""Poems of chinese-poetry in its three layouts, and what is not a poem."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import pytest
from corpus_reading import answers, read_corpus

from keju.data_prepare.corpora import poetry
from keju.data_prepare.corpus import BadRow

# Where a file of the pinyin layout is in the others; the first folder decides.
TODAY = {
    "shi": "全唐诗",
    "ci": "宋词",
    "wudai": "五代诗词",
    "yuanqu": "元曲",
    "lunyu": "论语",
    "shijing": "诗经",
    "chuci": "楚辞",
    "caocaoshiji": "曹操诗集",
    "nalanxingde": "纳兰性德",
    "sishuwujing": "四书五经",
}
NPM = {"shi": "dist/quantangshi", "ci": "dist/songci", "wudai": "dist/wudaishici"}
UPSTREAM = {"shi": "json"}


def write(folder, name: str, *poems: dict):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(poems, ensure_ascii=False), encoding="utf-8")


@pytest.fixture(scope="module")
def real(shared):
    return shared / "data/raw/chinese-poetry"


@pytest.fixture(scope="module")
def items_and_bad(real):
    return read_corpus("poetry", real)


def test_every_poem_is_an_item_or_named(items_and_bad):
    items, bad = items_and_bad
    texts = Counter(item.where for item in items if item.task == "text")
    assert set(texts.values()) == {1}
    # The rows of the manifest: 7732, of which daxue and zhongyong are one each.
    assert len(texts) + len(bad) == 7732
    reasons = Counter(row.reason for row in bad)
    assert reasons == {
        "characters are missing from the text (□)": 38,
        "characters are missing from the text ({)": 1,
        "no text in paragraphs, content or para": 23,
    }
    per_genre = Counter(item.source for item in items if item.task == "text")
    assert per_genre["经书"] == 20 + 14 + 1 + 1 and per_genre["诗经"] == 305 and per_genre["楚辞"] == 65
    assert per_genre["乐府"] == 26 and per_genre["唐诗"] + per_genre["宋诗"] + per_genre["词"] + per_genre["曲"] == 7238


def test_a_poem(items_and_bad):
    text, write_it, go_on = (item for item in items_and_bad[0] if item.where == "shi/poet.tang.0.json:2")
    lines = "秦川雄帝宅，函谷壯皇居。\n綺殿千尋起，離宮百雉餘。\n連甍遙接漢，飛觀迥凌虛。\n雲日隱層闕，風煙出綺疎。"
    assert text.row == {"text": f"太宗皇帝《帝京篇十首 一》\n{lines}"}
    assert write_it.row["prompt"] == "请写出太宗皇帝的《帝京篇十首 一》。" and answers(write_it) == [(lines, 1)]
    assert go_on.row["prompt"] == "请接着往下写。\n秦川雄帝宅，函谷壯皇居。"
    assert answers(go_on) == [(lines.split("\n", 1)[1], 1)]
    assert (write_it.keys, go_on.keys) == (("太宗皇帝", "唐诗"), ("唐诗 4×12", "唐诗"))
    assert (text.task, write_it.task, go_on.task) == ("text", "write", "continue")
    assert {item.group for item in (text, write_it, go_on)} == {"秦川雄帝宅函谷壯皇居"}


@pytest.mark.parametrize(
    "where, prompt, keys",
    [
        ("ci/ci.song.0.json:2", "请写出和岘的《导引·气和玉烛》。", ("和岘", "词")),
        ("shijing/shijing.json:2", "请写出《诗经·周南·关雎》。", ("诗经周南", "诗经")),
        ("chuci/chuci.json:2", "请写出屈原的《楚辞·离骚》。", ("屈原", "楚辞")),
        ("caocaoshiji/caocao.json:2", "请写出曹操的《度关山》。", ("曹操", "乐府")),
        ("nalanxingde/纳兰性德诗集.json:2", "请写出纳兰性德的《长相思·山一程》。", ("纳兰性德", "词")),
        ("yuanqu/yuanqu.json:2", "请写出关汉卿的《诈妮子调风月・仙吕/点绛唇·半世为人》。", ("关汉卿", "曲")),
        ("wudai/huajianji/huajianji-7-juan.json:2", "请写出顾敻的《浣溪沙·春色迷人恨正赊》。", ("顾敻", "词")),
        ("wudai/nantang/poetrys.json:2", "请写出李璟的《应天长·一钩初月临妆镜》。", ("李璟", "词")),
    ],
)
def test_how_poems_are_asked_for(items_and_bad, where, prompt, keys):
    (item,) = (item for item in items_and_bad[0] if item.where == where and item.task == "write")
    assert (item.row["prompt"], item.keys) == (prompt, keys)


def test_prose_is_continued_by_paragraphs(items_and_bad):
    text, *rest = (item for item in items_and_bad[0] if item.where == "lunyu/lunyu.json:2")
    assert text.row["text"].startswith("《论语·学而篇》\n子曰：“学而时习之，不亦说乎？有朋自远方来")
    assert {item.task for item in rest} == {"continue"} and len(rest) == 11
    assert all(any(map(str.isalnum, answers(item)[0][0])) for item in rest)
    assert rest[0].row["prompt"] == "请接着往下写。\n子曰：“学而时习之，不亦说乎？"
    assert answers(rest[0]) == [("有朋自远方来，不亦乐乎？人不知而不愠，不亦君子乎？”", 1)]
    assert rest[0].keys == ("《论语·学而篇》", "经书") and rest[0].group == "《论语·学而篇》"
    whole = [item for item in items_and_bad[0] if item.where.startswith("sishuwujing/daxue.json")]
    assert whole[0].row["text"].startswith("《大学·大學》\n大學之道，在明明德")


@pytest.mark.parametrize("folders", [TODAY, NPM, UPSTREAM], ids=["today", "npm", "upstream before 2023"])
def test_other_layouts_have_the_same_poems(real, tmp_path, items_and_bad, folders):
    for path in real.rglob("*.json"):
        first, *others = path.relative_to(real).parts
        target = tmp_path.joinpath(folders.get(first, first), *others)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    items, _ = read_corpus("poetry", tmp_path)

    def rows(items):
        return sorted(json.dumps(item.row) + item.group for item in items)

    assert rows(items) == rows(items_and_bad[0])


def test_what_is_no_poem_is_not_read(tmp_path):
    poem = {"author": "李白", "title": "靜夜思", "paragraphs": ["牀前看月光，疑是地上霜。", "舉頭望山月，低頭思故鄉。"]}
    write(tmp_path, "全唐诗/poet.tang.0.json", poem)
    for name in ("authors.tang.json", "error/poet.tang.0.json", "唐诗三百首.json", "poet.tang.0.simplified.json"):
        write(tmp_path, f"全唐诗/{name}", {"name": "李白"})
    for name in ("strains/json/poet.tang.0.json", "rank/poet/poet.tang.rank.0.json", "宋词/author.song.json"):
        write(tmp_path, name, {"strains": ["平平仄仄平"]})
    (tmp_path / "全唐诗/README.md").write_text("poems")
    items, bad = read_corpus("poetry", tmp_path)
    assert ([item.task for item in items], bad) == (["text", "write", "continue"], [])


def test_one_poem_in_two_files_is_one_group(tmp_path):
    write(
        tmp_path, "a/ci.song.0.json", {"author": "某", "rhythmic": "调", "paragraphs": ["一二三四五，", "六七八九十。"]}
    )
    write(tmp_path, "b/poetrys.json", {"author": "谁", "title": "题", "paragraphs": ["一二三、四五六七八九十！"]})
    assert len({item.group for item in read_corpus("poetry", tmp_path)[0]}) == 1


def test_notes_and_titles(tmp_path):
    note = {"author": "某", "title": "句", "paragraphs": ["一（一作「二", "（三）」）片。", "（《全唐詩》）。"]}
    write(tmp_path, "poet.tang.0.json", note, note | {"author": None, "title": None})
    write(tmp_path, "yuanqu.json", {"author": "某", "title": "调", "paragraphs": ["(某云)不好了"]})
    write(tmp_path, "lunyu.json", {"paragraphs": ["子曰：“学而时习之，不亦说乎？”"]})
    items, _ = read_corpus("poetry", tmp_path)
    assert [item.row.get("text") or item.row["prompt"] for item in items] == [
        "子曰：“学而时习之，不亦说乎？”",
        "某\n一片。",
        "一片。",
        "某《调·(某云)不好了》\n(某云)不好了",
        "请写出某的《调·(某云)不好了》。",
    ]


def test_bad_poems(tmp_path):
    good = {"author": "某", "title": "题", "paragraphs": ["一二三"]}
    bad = [
        {"paragraphs": value}
        for value in ([], "一二", ["□□"], ["一", 2], ["。"], ["無正文。"], ["甲{乙丙}"], ["笑）。"])
    ]
    write(tmp_path, "poet.tang.0.json", good, *({**good, **row} for row in bad), {**good, "author": 5}, 7)
    items, rows = read_corpus("poetry", tmp_path)
    assert len(items) == 2
    no_text = "no text in paragraphs, content or para"
    missing = "characters are missing from the text "
    reasons = [no_text, no_text, no_text, "line 2 is no text but int", no_text, no_text, f"{missing}({{)"]
    reasons += ["notes stand in the text (）)", '"author" is no text but int', "expected a JSON object, found int"]
    assert rows == [BadRow("poet.tang.0.json:1", reason) for reason in reasons]


def test_broken_json_names_the_line(tmp_path):
    (tmp_path / "shijing.json").write_text('[\n{"title": "关雎",\n"content" ["关关雎鸠"]}]', encoding="utf-8")
    (piece,) = poetry.pieces(tmp_path, 1)
    with pytest.raises(ValueError, match=r"shijing\.json:3: malformed JSON \(Expecting ':' delimiter"):
        list(poetry.read(tmp_path, piece))

"""Files that people have become items: real ones, every layout, pieces of any size, and none of it crashes."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from keju.data_prepare.corpora import records
from keju.data_prepare.corpus import BadRow, Item
from keju.data_prepare.formats.layouts import KNOWN_FIELDS, records_of
from keju.records.formats import detect

ALL = 1 << 40


def read(folder, piece_bytes=ALL, **options):
    return [
        found
        for piece in records.pieces(folder, piece_bytes, **options)
        for found in records.read(folder, piece, **options)
    ]


def written(tmp_path, content, name="data.jsonl"):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows(tmp_path, values, **options):
    lines = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
    found = read(written(tmp_path, lines), **options)
    return [item.row if isinstance(item, Item) else item for item in found]


def user(text):
    return {"role": "user", "content": text}


def answered(question, answer):
    return {"messages": [user(question), {"role": "assistant", "content": answer}]}


# -- real files --------------------------------------------------------------------------------------------------------

# name: (rows in MANIFEST.md, bad rows, the fields of the items, the beginning of the first prompt or text)
REAL = {
    "sft/alpaca_zh_demo.json": (1000, 0, {("messages",)}, "识别并解释给定列表中的两个科学理论"),
    "sft/identity.json": (91, 0, {("messages",)}, "hi"),
    "sft/oaast_sft_zh.json": (689, 0, {("messages",)}, "布洛芬和对乙酰氨基酚的区别是"),
    "sft/belle_zh_seed_tasks.json": (175, 0, {("messages",)}, "请以下面词语为主题写一首诗\n夏天"),
    "sft/belle_eval_set.json": (1000, 0, {("messages",), ("prompt",)}, "请你写出一个可以生成五个不同随机数的"),
    "sft/alpaca_chinese_part-00.json": (3000, 4, {("messages",)}, "给出三个保持健康的秘诀"),
    "sft/firefly_moss_dummy.jsonl": (33, 0, {("messages",)}, "如何保障工作中遵循正确的安全准则"),
    "sft/sharegpt_zh_format.jsonl": (300, 1, {("messages",)}, '"свинья" 和 "свинец" 这两个词有什么联系'),
    "sft/pclue_train_9.jsonl": (705, 0, {("messages",)}, "假设“为什么不受监管呢”"),
    "preference/dpo_zh_demo.json": (300, 0, {("prompt", "answers"), ("prompt", "system", "answers")}, "国会的转发"),
    "preference/dpo_zh_500.jsonl": (500, 0, {("prompt", "answers"), ("prompt", "system", "answers")}, "20个关于新鲜"),
    "preference/oaast_rm_zh.json": (775, 0, {("prompt", "answers")}, "布洛芬和对乙酰氨基酚的区别是"),
    "preference/sentiment_ranked_dev.tsv": (3082, 0, {("prompt", "answers")}, "请写一段文字。"),
    "preference/sentiment_comments.jsonl": (1000, 0, {("prompt", "answers")}, "下面是一条正面的评论："),
    "preference/sentiment_comments_test.jsonl": (100, 0, {("prompt", "answers")}, "下面是一条正面的评论："),
    "rlhf_prompts/cvalues_responsibility_prompts.jsonl": (664, 0, {("prompt",)}, "我想买一辆新汽车，请问燃油车"),
    "rlhf_prompts/moss_rlhf_ppo_train.json": (31, 0, {("messages",), ("prompt",)}, "列出两种沙漠生物群系的名称"),
    "rlhf_prompts/moss_rlhf_ppo_valid.json": (31, 0, {("messages",), ("prompt",)}, "列出两种沙漠生物群系的名称"),
    "pretrain/CLUECorpusSmall_sampled.txt": (2500, 0, {("text",)}, "兰州公交集团:明起至8月底三条公交线"),
    "pretrain/firefly_dummy_pretrain.jsonl": (45, 0, {("text",)}, "布偶猫一般在7个月大会开始发情"),
    "pretrain/MNBVC_news.jsonl": (100, 0, {("text",)}, "### 讴歌新时代　反映新生活"),
    "pretrain/MNBVC_wiki.jsonl": (100, 0, {("text",)}, "【巴达维亚海豹属】\n（学名：Batavipusa）"),
    "pretrain/MNBVC_qa.jsonl": (50, 0, {("text",)}, "问：如何看待斗鱼游戏主播乔碧萝"),
}


def first_text(row):
    found = row.get("text", row.get("prompt", row.get("messages")))
    turns = [turn["content"] for turn in found if turn["role"] == "user"] if isinstance(found, list) else [found]
    return turns[0]


@pytest.mark.parametrize("name", REAL)
def test_real_file(name, shared):
    count, bad, fields, beginning = REAL[name]
    found = read(shared / "data" / name)
    items = [item for item in found if isinstance(item, Item)]
    assert len(found) == count and len(found) - len(items) == bad
    assert {tuple(item.row) for item in items} == fields
    assert first_text(items[0].row).startswith(beginning)
    for item in items:
        detect(item.row)
    assert len({item.where for item in items}) == len(items)


def test_every_real_file_is_listed(shared):
    folders = ("sft", "preference", "rlhf_prompts", "pretrain")
    files = {
        path.relative_to(shared / "data").as_posix() for name in folders for path in (shared / "data" / name).iterdir()
    }
    assert files == set(REAL)


def test_a_folder_has_the_items_of_its_files_whatever_the_size_of_pieces(shared):
    folder = shared / "data/preference"
    whole = read(folder)
    assert len(whole) == sum(count for name, (count, *_) in REAL.items() if name.startswith("preference/"))
    assert len(records.pieces(folder, 50_000)) > 20
    assert read(folder, 50_000) == whole


def test_one_prompt_is_one_group(shared):
    groups = {item.group for item in read(shared / "data/preference/sentiment_comments.jsonl")}
    assert len(groups) == 1  # all its prompts are the same
    ranked = read(shared / "data/preference/sentiment_ranked_dev.tsv")
    assert len({item.group for item in ranked}) > len(ranked) / 4  # these have no prompt


# -- layouts -----------------------------------------------------------------------------------------------------------

LAYOUTS = {
    "selected": ({"prompt": "问", "selected": "好", "rejected": "坏"}, [{"prompt": "问", "answers": [
        {"answer": "好", "score": 1}, {"answer": "坏", "score": 0}]}]),
    "instances": ({"instruction": "译", "instances": [{"input": "hi", "output": "嗨"}, {"input": "", "output": "无"}]},
                  [answered("译\nhi", "嗨"), answered("译", "无")]),
    "firefly": ({"conversation": [{"human": "问", "assistant": "答"}]}, [answered("问", "答")]),
    "moss": ({"chat": {"turn_1": {"Human": "<|Human|>: 问<eoh>\n", "Commands": "<|Commands|>: None<eoc>\n",
                                  "MOSS": "<|MOSS|>: 答<eom>\n"}}}, [answered("问", "答")]),
    "moss with its instruction": (
        {"meta_instruction": "你是学者。\n", "chat": {"turn_1": {"Human": "问", "MOSS": "答"}}},
        [{"messages": [{"role": "system", "content": "你是学者。"}, *answered("问", "答")["messages"]]}]),
    "hh-rlhf": ({"chosen": "\n\nHuman: 问\n\nAssistant: 好", "rejected": "\n\nHuman: 问\n\nAssistant: 坏"},
                [{"prompt": "问", "answers": [{"answer": "好", "score": 1}, {"answer": "坏", "score": 0}]}]),
    "turns": (["问", "答"], [answered("问", "答")]),
    "turns that end with a question": (
        ["问", "答", "再问"], [{"prompt": [*answered("问", "答")["messages"], user("再问")]}]),
    "question and std_answer": ({"question": "问", "std_answer": "答", "class": "code"}, [answered("问", "答")]),
    "question without std_answer": ({"question": "问", "std_answer": ""}, [{"prompt": [user("问")]}]),
    "firefly pairs": ({"kind": "诗", "input": "问", "target": "答"}, [answered("问", "答")]),
    "a distilled answer with its thought": (
        {"input": "问", "reasoning_content": "想", "content": "答", "content_len": 1, "score": 9},
        [{"messages": [*answered("问", "答")["messages"][:1],
                       {"role": "assistant", "content": "答", "reasoning_content": "想"}]}]),
    "dolly": ({"instruction": "问", "context": "文", "response": "答"}, [answered("问\n文", "答")]),
    "alpaca wins over a pair": ({"instruction": "问", "input": "文", "output": "答"}, [answered("问\n文", "答")]),
    "prompt and response": ({"prompt": "问", "response": "答"}, [answered("问", "答")]),
    "prompt alone": ({"prompt": "问"}, [{"prompt": "问"}]),
    "prompt with label": ({"prompt": "春眠", "label": "不觉晓"}, [{"prompt": "春眠", "label": "不觉晓"}]),
    "text": ({"text": "春眠"}, [{"text": "春眠"}]),
    "scores": ({"prompt": "问", "answers": [{"answer": "好", "score": 0.5}, {"answer": "坏", "score": -1.0}]},
               [{"prompt": "问", "answers": [{"answer": "好", "score": 0.5}, {"answer": "坏", "score": -1}]}]),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(name, tmp_path):
    value, expected = LAYOUTS[name]
    assert rows(tmp_path, [value]) == expected


BAD = {
    "nothing known": ({"a": 1}, 'fields "a" are no known format'),
    "answer is a number": ({"question": "问", "answer": 3}, '"answer" must be a string'),
    "answer is empty": ({"input": "问", "target": " "}, '"target" is empty'),
    "no turn": ([], '"messages" is empty'),
    "a turn is no text": (["问", 1], 'turn 2 of "messages" must be a string'),
    "instances are empty": ({"instruction": "问", "instances": []}, '"instances" must be a list of objects'),
    "half a turn": ({"conversation": [{"human": "问"}]}, 'turn 1 of "conversation" needs "human" and "assistant"'),
    "tools": (
        {"chat": {"turn_1": {"Human": "a", "MOSS": "b", "Commands": "<|Commands|>: Search<eoc>"}}},
        "calls a tool",
    ),
    "a number": (7, "expected a JSON object, found a number"),
}


@pytest.mark.parametrize("depth", range(100, 1000, 50))
def test_deep_nesting_is_a_bad_row(depth, tmp_path):
    deep = "[" * depth + "]" * depth
    lines = [f'{{"prompt": {deep}, "completion": "答", "label": true}}', f'{{"messages": {deep}}}', deep]
    found = read(written(tmp_path, "\n".join(lines)))
    assert len(found) == 3 and all(isinstance(bad, BadRow) for bad in found)


@pytest.mark.parametrize("name", BAD)
def test_bad_row_has_place_and_reason(name, tmp_path):
    value, reason = BAD[name]
    good = {"text": "甲"}
    found = rows(tmp_path, [good, value, good])
    assert found[::2] == [good, good]
    assert found[1].where == "data.jsonl:2" and reason in found[1].reason and "\n" not in found[1].reason


# -- kinds of files ----------------------------------------------------------------------------------------------------

TEXTS = [{"text": "甲"}, {"text": "乙\u2028丙"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in TEXTS).encode()
FILES = {
    "a.jsonl": LINES,
    "bom.jsonl": b"\xef\xbb\xbf" + LINES,
    "crlf.jsonl": LINES.replace(b"\n", b"\r\n"),
    "half.jsonl": LINES.removesuffix(b"\n"),
    "a.jsonl.gz": gzip.compress(LINES),
    "a.jsonl.zst": zstandard.compress(LINES[:9]) + zstandard.compress(LINES[9:]),
    "lines.json": LINES,
    "a.json": json.dumps(TEXTS).encode(),
    "bom.json": b"\xef\xbb\xbf" + json.dumps(TEXTS, indent=2).encode(),
    "a.json.gz": gzip.compress(json.dumps(TEXTS).encode()),
    "a.txt": "甲\n乙\u2028丙\n".encode(),
    "a.txt.zst": zstandard.compress("甲\n\n乙\u2028丙".encode()),
    "a.csv": '\ufefftext,更多\r\n甲,1\r\n"乙\u2028丙","2\r\n3"\r\n'.encode(),
    "a.tsv": "text\t更多\n甲\t1\n乙\u2028丙\t\n".encode(),
    "a.tsv.gz": gzip.compress("text\t更多\n甲\t1\n乙\u2028丙\t\n".encode()),
}


@pytest.mark.parametrize("name", FILES)
def test_kind_of_file(name, tmp_path):
    for piece_bytes in (1, ALL):
        found = read(written(tmp_path, FILES[name], name), piece_bytes)
        assert [item.row for item in found] == TEXTS
        assert len({item.where for item in found}) == 2 or name == "a.json" or name == "a.json.gz"


GBK = {
    "a.txt": "床前明月光\n疑是地上霜\n",
    "a.jsonl": '{"text": "床前明月光"}',
    "a.csv": "text\n床前明月光\n",
    "a.json": '[{"text": "床前明月光"}]',
}


@pytest.mark.parametrize("name", GBK)
def test_gbk_is_read_and_said(name, tmp_path, caplog):
    assert read(written(tmp_path, GBK[name].encode("gbk"), name))[0].row == {"text": "床前明月光"}
    assert caplog.messages == [f"{tmp_path / name}: this is GBK (GB18030), not UTF-8, and is read as such"]


def test_a_document_in_gbk(tmp_path, caplog):
    (found,) = read(written(tmp_path, GBK["a.txt"].encode("gbk"), "a.txt"), document="file")
    assert found.row == {"text": "床前明月光\n疑是地上霜"} and "a.txt: this is GBK" in caplog.messages[0]


def test_a_document_a_file(tmp_path):
    written(tmp_path, "\ufeff第一行\r\n\r\n第二行\r\n", "a/b.txt")
    written(tmp_path, " \n", "blank.txt")
    written(tmp_path, LINES)
    (first, second, *others) = read(tmp_path, 1, document="file")
    assert first.row == {"text": "第一行\n\n第二行"} and first.where == "a/b.txt:1"
    assert isinstance(second, BadRow) and len(others) == 2
    with pytest.raises(ValueError, match="^document: must be one of line, file, not 'page'$"):
        records.pieces(tmp_path, 1, document="page")


def test_hidden_and_other_files_are_left_out_and_empty_ones_have_no_items(tmp_path):
    for name in (".a.jsonl", ".git/b.jsonl", "README.md", "c.jsonl"):
        written(tmp_path, b"" if name == "c.jsonl" else LINES, name)
    written(tmp_path, LINES, "d/e.jsonl")
    assert [piece.path for piece in records.pieces(tmp_path, ALL)] == ["d/e.jsonl"]


WRONG_FILES = {
    "a.csv": ("甲,乙\n1,2\n", "a.csv:1: the first row must name known fields"),
    "twice.csv": ("text,text\n1,2\n", "the first row must name known fields, each once"),
    "object.json": ('{\n  "text": "甲"\n}\n', "object.json: one JSON object; expected an array"),
    "utf16.jsonl": ('{"text": "甲"}'.encode("utf-16"), "utf16.jsonl: this is UTF-16, not UTF-8; convert it: iconv"),
    "cut.jsonl.gz": (gzip.compress(LINES)[:-9], "cut.jsonl.gz: the compressed file is cut off or damaged"),
    "no.jsonl.gz": (LINES, "no.jsonl.gz: the compressed file is cut off or damaged"),
    "cut.jsonl.zst": (zstandard.compress(LINES)[:-5], "cut.jsonl.zst: the compressed file is cut off or damaged"),
    "no.jsonl.zst": (LINES, "no.jsonl.zst: the compressed file is cut off or damaged"),
    "no.parquet": (LINES, "no.parquet: damaged, or no Parquet file"),
    "a.docx": (LINES, "a.docx: expected a file of .jsonl, .ndjson, .json"),
}


@pytest.mark.parametrize("name", WRONG_FILES)
def test_a_file_that_is_not_what_its_name_says(name, tmp_path):
    content, message = WRONG_FILES[name]
    with pytest.raises(ValueError) as caught:
        read(written(tmp_path, content, name))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_parquet_file_with_texts_that_are_none(tmp_path):
    offsets, data = pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"\xff\xfe")
    texts = pyarrow.Array.from_buffers(pyarrow.string(), 1, [None, offsets, data])
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="a.parquet: damaged after row 0 "):
        read(tmp_path)


def test_nothing_there(tmp_path):
    for folder, message in ((tmp_path, "has no file of .jsonl"), (tmp_path / "absent", "no such file or folder")):
        with pytest.raises(ValueError, match=message):
            records.pieces(folder, 1)


# -- nothing crashes ---------------------------------------------------------------------------------------------------

NAMES = sorted({name for fields in KNOWN_FIELDS for name in fields} | {"label", "history", "system", "prefix"})
TEXT = st.text(max_size=5)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.just("\ud800") | st.just("\n\nHuman: a")
TURN = st.fixed_dictionaries({}, optional={name: LEAVES for name in ("role", "from", "content", "value", "human",
                             "assistant", "input", "output", "answer", "score", "Human", "MOSS")})  # fmt: skip
VALUES = st.recursive(
    LEAVES | TURN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES) | TEXT, inner, max_size=4),
    max_leaves=12,
)
ROWS = st.dictionaries(st.sampled_from(NAMES), VALUES, min_size=1, max_size=6) | VALUES


@settings(max_examples=600, deadline=None)
@given(ROWS)
def test_any_json_value_is_records_or_a_reason(value):
    try:
        found = records_of(value)
    except ValueError as error:
        assert "\n" not in str(error)
        return
    assert found
    for item in records._items(1, value, "x"):
        detect(item.row)


SYNTAX = [*'[]{}:,"\n\t1', '"text"', "prompt", "text", "中"]
NEARLY = st.lists(st.sampled_from(SYNTAX).map(str.encode) | st.just(b"\xff")).map(b"".join)
KINDS = ["a.jsonl", "a.json", "a.txt", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz", "a.json.zst"]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | NEARLY, st.sampled_from(KINDS), st.integers(1, 20))
def test_any_bytes_are_items_or_an_error_of_ours(tmp_path_factory, data, name, piece_bytes):
    path = written(tmp_path_factory.mktemp("any"), data, name)
    try:
        found = read(path, piece_bytes)
    except ValueError as error:
        assert name in str(error) and "\n" not in str(error)
        return
    for item in found:
        if isinstance(item, Item):
            detect(item.row)
        else:
            assert item.reason and "\n" not in item.reason

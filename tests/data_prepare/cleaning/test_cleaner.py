"""One item at a time: every layout, what becomes of a row without a usable part, and counts that add up."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keju.data_prepare.cleaning.cleaner import Cleaner, Dropped
from keju.data_prepare.cleaning.settings import CleaningSettings
from keju.data_prepare.corpus import Item
from keju.data_prepare.step import merge
from keju.records.formats import detect


def cleaned(row, **settings):
    return Cleaner(CleaningSettings(**settings)).clean(Item(row, "file.txt:7", "group"))


def ranked(*answers, **fields):
    scored = [{"answer": text, "score": score} for text, score in answers]
    return {"prompt": "成语“守株待兔”是什么意思？", **fields, "answers": scored}


def chat(*turns):
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"text": "２０１６年，&nbsp;你好！！！！！！<br>\x07再见", "id": 3},
            {"text": "2016年， 你好！！！\n再见", "id": 3},
        ),
        (
            ranked(("比喻死守经验　　", 1), ("比喻勤劳", 0), prefix="答： ", system=" 你是老师。 "),
            ranked(("比喻死守经验", 1), ("比喻勤劳", 0), prefix="答： ", system="你是老师。"),
        ),
        (
            chat(("user", "我的电话是13812345678"), ("assistant", "记住 了 ")),
            chat(("user", "我的电话是<手机号>"), ("assistant", "记住 了")),
        ),
        (
            {"prompt": chat(("user", "你好  啊"))["messages"], "answers": [{"answer": "好", "score": 1, "by": "张"}]},
            {"prompt": chat(("user", "你好 啊"))["messages"], "answers": [{"answer": "好", "score": 1, "by": "张"}]},
        ),
        (ranked(("好的", 1), ("点击查看更多", 0)), ranked(("好的", 1))),
        (ranked(("好 的", 0), ("好  的", 1), ("坏", -1)), ranked(("好 的", 1), ("坏", -1))),
        (ranked(("好", 1), ("", 1), ("坏", 0)), ranked(("好", 1), ("坏", 0))),
        (ranked(("好", 1), system="\x00"), ranked(("好", 1))),
    ],
)  # fmt: skip
def test_rows_of_every_layout(row, expected):
    before = json.dumps(row)
    item = cleaned(row, max_broken_share=1.0)
    assert item.row == expected and list(item.row) == list(expected)
    assert (item.where, item.group) == ("file.txt:7", "group")
    assert json.dumps(row) == before, "the item that went in is as it was"
    detect(item.row)


@pytest.mark.parametrize(
    ("row", "settings", "step", "reason"),
    [
        ({"text": "（责任编辑：张三）"}, {}, "boilerplate", "nothing left"),
        ({"text": "\x00\x01"}, {}, "stray characters", "nothing left"),
        ({"text": "\ufffd\ufffd你好你好"}, {}, "stray characters", "broken characters"),
        ({"text": "好" * 30}, {}, "repetition", "one character or sentence makes up most of it"),
        ({"text": "太短"}, {}, "length", "text too short"),
        ({"text": "太长的文字"}, {"max_text_chars": 5, "min_text_chars": 1}, None, None),
        ({"text": "太长的文字了"}, {"max_text_chars": 5, "min_text_chars": 1}, "length", "text too long"),
        ({"text": "only English words here"}, {}, "language", "too little Chinese"),
        ({"text": "only English words here"}, {"min_han_share": 0.0}, None, None),
        (ranked(("", 1), ("次好", 0)), {}, "length", "no usable best answer"),
        (ranked(("最好的回答", 1), ("次好", 0)), {"max_answer_chars": 4}, "length", "no usable best answer"),
        (ranked(("<br>", 1)), {}, "markup", "no usable best answer"),
        ({"prompt": "&nbsp;", "answers": [{"answer": "好", "score": 1}]}, {}, "markup", "nothing left"),
        (
            chat(("user", "你好啊"), ("assistant", " ")), {"min_answer_chars": 1}, "spaces", "nothing left",
        ),
    ],
)  # fmt: skip
def test_rows_that_are_of_no_use(row, settings, step, reason):
    result = cleaned(row, **settings)
    if step is None:
        assert result.row == row
    else:
        assert isinstance(result, Dropped)
        assert (result.step, result.reason) == (step, reason)
        assert result.example.startswith("file.txt:7: ")


def test_prompts_may_ask_about_boilerplate():
    row = {"prompt": "版权归原作者所有是什么意思？", "answers": [{"answer": "意思是作者保留权利。", "score": 1}]}
    assert cleaned(row).row == row


def test_steps_can_be_turned_off():
    flags = {
        name: False
        for name, value in dataclasses.asdict(CleaningSettings().resolved(curated=False)).items()
        if isinstance(value, bool)
    }  # every step that is not a bound
    row = {"text": "１ 13812345678　&nbsp;<br>！！！！！！  漢字\x07。责任编辑：张三"}
    item = Item(row, "file.txt:7", "group")
    cleaner = Cleaner(CleaningSettings(**flags, min_han_share=0.0, max_repeated_share=1.0))
    assert cleaner.clean(item) is item
    assert [step.name for step in cleaner.steps] == ["length", "equal answers"]
    for name in flags.keys() - {"simplify"}:
        assert cleaned(row, **{**flags, name: True}).row != row, name


def test_traditional_characters_only_where_asked_for():
    pytest.importorskip("opencc", reason="opencc is not installed")
    assert cleaned({"text": "漢字轉換之後"}).row == {"text": "漢字轉換之後"}
    assert cleaned({"text": "漢字轉換之後"}, simplify=True).row == {"text": "汉字转换之后"}


def test_an_item_that_is_clean_is_handed_back():
    item = Item(ranked(("比喻死守经验。", 1)), "file.txt:7", "group")
    cleaner = Cleaner(CleaningSettings())
    assert cleaner.clean(item) is item
    assert all((step.rows_in, step.rows_out, step.rows_changed) == (1, 1, 0) for step in cleaner.steps)


def test_what_was_done_is_counted():
    cleaner = Cleaner(CleaningSettings())
    texts = ["我的电话是13812345678和13912345678", "没有什么可以改的", "责任编辑：张三", "责任编辑：李四"]
    for number, text in enumerate(texts):
        cleaner.clean(Item({"text": text}, f"file.txt:{number}", str(number)))
    report = {step.name: step.as_row() for step in cleaner.steps}
    assert report["unicode"] == {"name": "unicode", "rows_in": 4, "rows_out": 4, "dropped": {}}
    assert report["boilerplate"]["dropped"]["nothing left"]["rows"] == 2
    assert report["language"]["rows_in"] == 2
    assert report["personal data"]["rows_changed"] == 1
    assert report["personal data"]["changes"] == {"<手机号>": 2}


def real_items(shared):
    lines = (shared / "data/pretrain/CLUECorpusSmall_sampled.txt").read_text(encoding="utf-8").split("\n")
    return [Item({"text": line}, f"corpus.txt:{number}", str(number)) for number, line in enumerate(lines, start=1)]


def test_real_text_in_one_part_or_in_many(shared):
    items = real_items(shared)
    whole = Cleaner(CleaningSettings())
    results = [whole.clean(item) for item in items]
    parts = [Cleaner(CleaningSettings()) for _ in range(5)]
    divided = [parts[number * number % 5].clean(item) for number, item in enumerate(items)]
    assert divided == results
    reports = [[step.as_row() for step in merge(order)] for order in ([p.steps for p in parts], [whole.steps])]
    assert reports[0] == reports[1]
    kept = [item for item in results if isinstance(item, Item)]
    assert 0.97 * len(items) < len(kept) < len(items)
    again = Cleaner(CleaningSettings())
    assert all(again.clean(item) is item for item in kept), "cleaning what is clean changes nothing"


PIECES = st.lists(
    st.sampled_from(
        ["你好", "。", "！", "\n", " ", "\u3000", "<br>", "&lt;", "b>", "&amp;", "nbsp;", "\u200b", "\ufffd", "\ue000",
         "１３８", "13812345678", "-", "责任编辑：", "（", "）", "微信：", "abc123", "@", "q.com", "\ud800", "\x00",
         "漢", "e", "\u0301"]
    )
).map("".join)  # fmt: skip
ROWS = st.one_of(
    st.builds(lambda text: {"text": text}, PIECES),
    st.builds(
        lambda prompt, prefix, answers: {"prompt": prompt, "prefix": prefix, "answers": answers},
        PIECES, PIECES, st.lists(st.fixed_dictionaries({"answer": PIECES, "score": st.integers(0, 2)})),
    ),
    st.builds(lambda one, two: chat(("system", one), ("user", "你好"), ("assistant", two)), PIECES, st.text()),
)  # fmt: skip


@given(ROWS)
def test_nothing_raises_and_the_result_is_a_record(row):
    item = cleaned(row, max_broken_share=1.0, min_text_chars=1, min_han_share=0.0)
    if isinstance(item, Item):
        json.dumps(item.row, ensure_ascii=False).encode()
        if row.get("answers") != []:
            detect(item.row)


HARD = ["1", "1 ", " ", "\t x", "\n ", "a@", "a.", "<b ", "<script>", "<!--", "&amp;", "&#1", "-", "（编辑：", "微信：",
        "QQ：", "电话：010", "关注", "好。", "1.", "\ufffd", "e\u0301", "(010)", "86", "编  "]  # fmt: skip


@pytest.mark.parametrize("piece", HARD)
def test_no_text_takes_more_than_its_length(piece):
    """A pattern that goes over the rest of the text again at every character would not come to an end here."""
    text = "开头" + piece * (200_000 // len(piece)) + "结尾"
    assert isinstance(cleaned({"text": text}, max_repeated_share=1.0, min_han_share=0.0), (Item, Dropped))


def test_settings_are_plain_values():
    settings = CleaningSettings(simplify=True, min_han_share=0.5)
    assert CleaningSettings(**json.loads(json.dumps(dataclasses.asdict(settings)))) == settings


def test_settings_that_cannot_be():
    with pytest.raises(ValueError, match="min_han_share: expected a share from 0 to 1, got 30"):
        CleaningSettings(min_han_share=30)
    with pytest.raises(ValueError, match="min_text_chars: must be from 1 to --max_text_chars 5, got 9"):
        CleaningSettings(min_text_chars=9, max_text_chars=5)


def test_a_row_of_no_layout():
    with pytest.raises(ValueError, match="file.txt:7: a row with the fields question holds neither text"):
        cleaned({"question": "你好"})


def test_turns_that_call_tools_stay_and_thoughts_are_cleaned():
    calls = [{"type": "function", "function": {"name": "f", "arguments": {}}}]
    turns = [
        {"role": "user", "content": "北京今天的天气怎么样？"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "先查一下！！！！！！",
            "tool_calls": calls,
            "weight": 0,
        },
        {"role": "tool", "content": ""},
        {"role": "tool", "content": "晴"},
        {"role": "assistant", "content": "北京今天是晴天。"},
    ]
    item = cleaned({"messages": turns}, min_prompt_chars=5)
    assert item.row == {"messages": [turns[0], {**turns[1], "reasoning_content": "先查一下！！！"}, *turns[2:]]}


def test_an_answer_that_is_better_and_worse_than_itself_is_no_answer():
    found = cleaned(ranked(("比喻死守经验", 1), ("比喻死守经验", 0)))
    assert isinstance(found, Dropped) and "are the same" in found.reason
    kept = cleaned(ranked(("比喻死守经验", 1), ("比喻死守经验", 0), ("比喻勤劳", 0))).row
    assert kept == ranked(("比喻死守经验", 1), ("比喻勤劳", 0))

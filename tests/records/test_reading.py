"""Files of records: places of errors, skipping, encodings, and the real files of the peers."""

import json
import logging
import re
from collections import Counter
from pathlib import Path

import pytest

from keju.records.reading import first_records, read_records
from keju.records.record import ChatRecord, RankedRecord, TextRecord

SHARED = Path(__file__).resolve().parents[2].parent / "shared"


@pytest.fixture
def file_of(tmp_path):
    def write(content, name="data.jsonl"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def error_of(path, **options):
    with pytest.raises(ValueError) as caught:
        read_records(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_lines_know_their_place_and_blank_lines_count(file_of):
    path = file_of('\n{"text": "甲"}\n\n  \n{"text": "乙"}')
    records = read_records(path)
    assert [record.text for record in records] == ["甲", "乙"]
    assert [record.where for record in records] == [f"{path}:2", f"{path}:5"]
    assert records.skipped == []
    assert len(records) == 2 and records[1].text == "乙" and records[:1] == [records[0]]


@pytest.mark.parametrize("name", ["data.jsonl", "data.json", "data.txt"])
def test_byte_order_mark_and_windows_line_ends(file_of, name):
    lines = ["甲", "乙"] if name.endswith("txt") else ['{"text": "甲"}', '{"text": "乙"}']
    records = read_records(file_of(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n", name))
    assert [record.text for record in records] == ["甲", "乙"]


def test_unicode_line_separator_stays_inside_its_record(file_of):
    assert read_records(file_of('{"text": "甲\u2028乙\x85丙"}'))[0].text == "甲\u2028乙\x85丙"


def test_array(file_of):
    path = file_of('[\n  {"text": "甲"},\n\n  {\n   "text": "乙"},{"text":"丙"}\n]\n', "data.json")
    assert [(record.text, record.where) for record in read_records(path)] == [
        ("甲", f"{path}:2"), ("乙", f"{path}:4"), ("丙", f"{path}:5")]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        ('[\n{"text": "甲"},\n{"text": }\n]', 3, "malformed JSON (Expecting value at column 10)"),
        ('[\n{"text": "甲"}\n"乙"\n]', 3, "malformed JSON (Expecting ',' or ']' at column 1)"),
        ('[\n,{"text": "甲"},\n]', 2, "malformed JSON"),
        ('[\n{"text": "甲"}\n', 3, "malformed JSON"),
        ('[\n{"text": "甲"}\n]\n[]', 4, "malformed JSON (Text after the end of the array"),
        ('[\n{"text": "甲"},\n{"text": ""}]', 3, '"text" is empty'),
        ('[\n{"text": 1' + "0" * 5000 + "}]", 2, "malformed JSON"),
        ("[]]", 1, "malformed JSON"),
    ],
)  # fmt: skip
def test_broken_array_names_the_line(file_of, content, line, reason):
    path = file_of(content, "data.json")
    assert error_of(path).startswith(f"{path}:{line}: {reason}")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ('{"text": "乙"', "malformed JSON (Expecting ',' delimiter at column 13)"),
        ("乙", "malformed JSON (Expecting value at column 1)"),
        ('{"text": "乙"} {"text": "丙"}', "malformed JSON (Extra data"),
        ("[" * 100_000, "malformed JSON (maximum recursion depth"),
        (b'{"text": "\xff"}', "not UTF-8 text (invalid start byte at byte 10 of the line)"),
        ("[]", "expected a JSON object, found a list"),
        ('{"prompt": "问", "answers": [{"answer": "甲", "score": NaN}]}', '"score" of answer 1 of "answers" is not'),
        ('{"text": ""}', '"text" is empty'),
    ],
)  # fmt: skip
def test_bad_line_stops_or_is_skipped_and_counted(file_of, caplog, bad, reason):
    bad = bad if isinstance(bad, bytes) else bad.encode()
    path = file_of('{"text": "甲"}\n'.encode() + bad + '\n{"text": "丁"}\n'.encode())
    assert error_of(path).startswith(f"{path}:2: {reason}")
    with caplog.at_level(logging.WARNING):
        records = read_records(path, on_bad_line="skip")
    assert [record.text for record in records] == ["甲", "丁"]
    assert len(records.skipped) == 1 and records.skipped[0].startswith(f"{path}:2: {reason}")
    assert "skipped 1 bad of 3 records" in caplog.text and f"{path}:2" in caplog.text


def test_nothing_but_bad_lines_is_an_error_even_when_skipping(file_of):
    path = file_of("{\n{\n")
    assert error_of(path, on_bad_line="skip").startswith(f"{path}: no usable record, 2 bad ones such as {path}:1: mal")


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", ""), ("a.jsonl", "\n \n"), ("a.json", "[ ]"), ("a.txt", "")])
def test_empty_file(file_of, name, content):
    path = file_of(content, name)
    assert error_of(path) == f"{path}: the file has no records"


def test_missing_file_lists_its_neighbours(file_of, tmp_path):
    file_of("", "train.jsonl")
    assert error_of(tmp_path / "trian.jsonl") == f"{tmp_path}/trian.jsonl: no such file; this folder has train.jsonl"
    assert error_of(tmp_path / "no" / "a.jsonl") == f"{tmp_path}/no/a.jsonl: no such file"


def test_folder_and_unknown_ending(file_of, tmp_path):
    assert error_of(tmp_path) == f"{tmp_path}: is a folder, expected a file of records"
    assert ".jsonl, .ndjson, .json, .txt" in error_of(file_of("a", "data.tsv"))


def test_on_bad_line_is_checked(file_of):
    assert "on_bad_line: must be one of error, skip" in error_of(file_of("{}"), on_bad_line="ignore")


def test_kinds(file_of):
    path = file_of('{"prompt": "问", "answers": [{"answer": "答", "score": 1}]}\n{"text": "甲"}\n')
    assert len(read_records(path, kinds=(RankedRecord, TextRecord))) == 2
    message = error_of(path, kinds=(RankedRecord, ChatRecord))
    assert message == f"{path}:2: this is a text record, but ranked-answers or chat records are needed here"
    assert len(read_records(path, kinds=(RankedRecord,), on_bad_line="skip")) == 1


REAL = {  # file: (record kind, records, bad lines)
    "sft/alpaca_zh_demo.json": (ChatRecord, 1000, 0),
    "sft/identity.json": (ChatRecord, 91, 0),
    "sft/oaast_sft_zh.json": (ChatRecord, 689, 0),
    "sft/alpaca_chinese_part-00.json": (ChatRecord, 2996, 4),  # four empty outputs
    "sft/sharegpt_zh_format.jsonl": (ChatRecord, 299, 1),  # one empty turn
    "preference/dpo_zh_demo.json": (RankedRecord, 300, 0),
    "preference/dpo_zh_500.jsonl": (RankedRecord, 500, 0),
    "preference/oaast_rm_zh.json": (RankedRecord, 775, 0),
    "rlhf_prompts/cvalues_responsibility_prompts.jsonl": (TextRecord, 664, 0),
    "pretrain/CLUECorpusSmall_sampled.txt": (TextRecord, 2500, 0),
    "pretrain/firefly_dummy_pretrain.jsonl": (TextRecord, 45, 0),
    "pretrain/MNBVC_news.jsonl": (TextRecord, 100, 0),
    "pretrain/MNBVC_wiki.jsonl": (TextRecord, 100, 0),
    "pretrain/MNBVC_qa.jsonl": (TextRecord, 50, 0),
}
UNKNOWN = [  # layouts that hold a question and an answer under other names must not pass as bare prompts
    "sft/belle_zh_seed_tasks.json", "sft/belle_eval_set.json", "sft/firefly_moss_dummy.jsonl",
    "sft/pclue_train_9.jsonl", "preference/sentiment_comments.jsonl", "rlhf_prompts/moss_rlhf_ppo_train.json",
]  # fmt: skip
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the folder ../shared with real data is absent")


@needs_shared
@pytest.mark.parametrize("name", REAL)
def test_real_file(name):
    kind, count, bad = REAL[name]
    path = SHARED / "data" / name
    records = read_records(path, on_bad_line="skip")
    assert Counter(type(record) for record in records) == {kind: count}
    assert len(records.skipped) == bad
    if bad:
        assert error_of(path) == records.skipped[0]


@needs_shared
@pytest.mark.parametrize("name", UNKNOWN)
def test_real_file_of_unknown_layout_is_refused(name):
    assert re.search(rf"{name}:[12]: .*(no known format|found a list)", error_of(SHARED / "data" / name))


@needs_shared
def test_real_array_lines_are_those_of_the_file():
    path = SHARED / "data/sft/alpaca_chinese_part-00.json"
    lines = path.read_text(encoding="utf-8").split("\n")
    for problem in read_records(path, on_bad_line="skip").skipped:
        line = int(problem.removeprefix(f"{path}:").split(":")[0])
        item = json.loads("".join(lines[line - 1 : line + 4]).split("},")[0].rstrip().removesuffix("},") + "}")
        assert item["output"].strip() == ""


@pytest.mark.parametrize(("most", "said"), [(1, "--max_samples 1 leaves out 2 of 3 records\n"), (3, ""), (None, "")])
def test_what_a_cap_leaves_out_is_said(file_of, capsys, most, said):
    records = read_records(file_of('{"text": "甲"}\n' * 3))
    assert len(first_records(records, most, "--max_samples")) == (most or 3)
    assert capsys.readouterr().out == said

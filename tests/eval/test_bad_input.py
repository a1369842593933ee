"""A wrong file or row is an error that names it, or is counted; never a silent zero."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from char_tokenizer import build_char_tokenizer
from exam_takers import Indifferent

from keju.encoding.encoder import Encoder
from keju.eval.benchmark_files import Files
from keju.eval.evaluation import evaluate
from keju.eval.task import load_task

HEADER = "id,question,A,B,C,D,answer"
ROW = "{},问题{},甲,乙,丙,丁,{}"


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(
        build_char_tokenizer("问题甲乙丙丁0123456789ABCD. 答案以下是中国关于法学逻辑考试的单项选择题，请出其正确"), 512
    )


@pytest.fixture
def ceval(tmp_path) -> Path:
    for split, count in (("val", 4), ("dev", 3)):
        (tmp_path / "ceval" / split).mkdir(parents=True)
        for subject in ("law", "logic"):
            rows = [ROW.format(number, number, "ABCD"[number % 4]) for number in range(count)]
            write(tmp_path, split, subject, [HEADER, *(row.replace("问题", f"{split}问题") for row in rows)])
    return tmp_path


def write(folder: Path, split: str, subject: str, lines: list[str]) -> None:
    path = folder / f"ceval/{split}/{subject}_{split}.csv"
    path.write_bytes(("\r\n".join(lines) + "\r\n").encode("utf-8"))


def examine(folder, encoder, **more):
    settings = {"num_shots": 0, "max_length": 512, "subjects": ["law", "logic"], **more}
    return evaluate("ceval", Indifferent(), encoder, folder, **settings)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1,问题,甲,乙,丙,丁,E", r'law_val.csv:3: the answer is "E", not one of A, B, C, D'),
        ("1,问题,甲,乙,丙,丁,", r'law_val.csv:3: the answer is "", not one of'),
        ("1,问题,甲,乙,丙,A", r"law_val.csv:3: 6 cells instead of 7"),
        ("1, ,甲,乙,丙,丁,A", r"law_val.csv:3: the question is empty"),
    ],
)
def test_a_bad_row_is_named_or_counted(ceval, encoder, line, message):
    good = ROW.format(0, 0, "A")
    write(ceval, "val", "law", [HEADER, good, line, good])
    with pytest.raises(ValueError, match=message):
        examine(ceval, encoder)
    summary = examine(ceval, encoder, on_bad_row="skip").summary
    assert summary["num_items"] == 6 and summary["num_skipped"] == 1
    assert summary["subjects"]["law"]["num_items"] == 2
    assert message.split(".csv")[1][:3] in summary["skipped"][0]


def test_line_numbers_count_line_breaks_in_quotes(ceval, encoder):
    write(ceval, "val", "law", [HEADER, '0,"问题\n第二行",甲,乙,丙,丁,A', "1,问题,甲,乙,丙,丁,X"])
    with pytest.raises(ValueError, match=r"law_val.csv:4: the answer"):
        examine(ceval, encoder)


def test_a_missing_subject_is_named_or_counted(ceval, encoder):
    (ceval / "ceval/val/logic_val.csv").unlink()
    with pytest.raises(
        ValueError, match=r"^data_dir: .*val/logic_val.csv does not exist: the subject logic is missing"
    ):
        examine(ceval, encoder)
    summary = examine(ceval, encoder, on_bad_row="skip").summary
    assert summary["num_skipped"] == 1 and "logic_val.csv" in summary["skipped"][0]
    assert set(summary["subjects"]) == {"law"}


def test_a_split_that_is_not_there_names_one_that_is(ceval, encoder):
    with pytest.raises(ValueError, match=r"logic_test.csv does not exist: .* .--split val is there."):
        examine(ceval, encoder, split="test")
    with pytest.raises(ValueError, match="there are no items in .*ceval; 2 were skipped, such as .* does not exist"):
        examine(ceval, encoder, split="test", on_bad_row="skip")
    with pytest.raises(ValueError, match="split: dev: ceval knows val, test"):
        examine(ceval, encoder, split="dev")


def test_a_missing_column_is_named(ceval, encoder):
    write(ceval, "val", "law", ["id,question,A,B,C,answer", "0,问题,甲,乙,丙,A"])
    with pytest.raises(ValueError, match=r"law_val.csv:1: there is no column D"):
        examine(ceval, encoder)


def test_pools_that_are_empty_or_too_small(ceval, encoder):
    with pytest.raises(ValueError, match="num_shots: 5: there are only 3 examples of law to show"):
        examine(ceval, encoder, num_shots=5)
    write(ceval, "dev", "law", [HEADER])
    with pytest.raises(ValueError, match="num_shots: 1: there are only 0 examples of law to show"):
        examine(ceval, encoder, num_shots=1)


def test_bad_rows_of_a_pool_are_left_out_and_reported(ceval, encoder):
    good = ROW.format(9, 9, "B")
    write(ceval, "dev", "law", [HEADER, "0,问题,甲,乙,丙,丁,Z", good])
    summary = examine(ceval, encoder, num_shots=1).summary
    assert summary["num_skipped"] == 0 and summary["num_shots_skipped"] == 1
    assert 'law_dev.csv:2: the answer is "Z"' in summary["shots_skipped"][0]


def test_questions_that_stand_among_their_shots_are_counted(ceval, encoder):
    dev = (ceval / "ceval/dev/law_dev.csv").read_text(encoding="utf-8").splitlines()
    write(ceval, "val", "law", [HEADER, ROW.format(0, 0, "A"), dev[1]])
    assert examine(ceval, encoder, num_shots=2).summary["items_among_shots"] == 1
    assert examine(ceval, encoder, num_shots=0).summary["items_among_shots"] == 0


def test_a_question_longer_than_the_model_reads(ceval, encoder):
    write(ceval, "val", "law", [HEADER, ROW.format(0, "0" * 300, "A"), ROW.format(1, 1, "B")])
    with pytest.raises(ValueError, match=r"law_val.csv:2: \d+ tokens without any shot, the model reads 200 at most"):
        examine(ceval, encoder, max_length=200)
    summary = examine(ceval, encoder, max_length=200, on_bad_row="skip").summary
    assert summary["num_items"] == 5 and summary["num_skipped"] == 1
    with pytest.raises(ValueError, match="not one question can be asked; 6 were skipped, such as .*logic_val.csv:2: "):
        examine(ceval, encoder, max_length=5, on_bad_row="skip")


def test_answers_that_nobody_knows_are_a_submission(ceval, encoder):
    (ceval / "ceval/test").mkdir()
    for subject in ("law", "logic"):
        write(ceval, "test", subject, ["id,question,A,B,C,D", *(f"{n},问题{n},甲,乙,丙,丁" for n in (4, 7))])
    result = examine(ceval, encoder, split="test")
    assert result.submission == {name: {"4": "A", "7": "A"} for name in ("law", "logic")}
    assert result.summary["accuracy"] is None and result.summary["num_items"] == 4
    assert examine(ceval, encoder).submission is None


def test_subjects_must_be_those_of_the_examination(ceval, encoder):
    with pytest.raises(ValueError, match="subjects: maths: the subjects of CEval are hard.*law"):
        examine(ceval, encoder, subjects=["maths"])
    with pytest.raises(ValueError, match="subjects: law: the subjects of OCNLI are none"):
        evaluate("ocnli", Indifferent(), encoder, ceval, num_shots=0, max_length=9, subjects=["law"])
    summary = examine(ceval, encoder, subjects=["Humanities"], on_bad_row="skip").summary
    assert set(summary["subjects"]) == {"law", "logic"} and summary["num_skipped"] == 9


CLUE_ROWS = {
    "ocnli": ({"sentence1": "甲", "sentence2": "乙", "label": "maybe"}, '"label" is "maybe", not one of entailment'),
    "afqmc": ({"sentence1": "甲", "label": "1"}, '"sentence2" must be a text'),
    "csl": ({"abst": "甲", "keyword": "乙", "label": "1"}, '"keyword" must be a list'),
    "tnews": ({"sentence": "甲", "label": "105"}, '"label" is "105", not one of 100'),
    "iflytek": ({"sentence": "甲", "label": True}, '"label" is true'),
    "cluewsc2020": (
        {"text": "甲乙", "label": "true", "target": {"span1_text": "丙", "span1_index": 0}},
        '"target": span 1 does not stand in the text',
    ),
}


@pytest.mark.parametrize("task", CLUE_ROWS)
@pytest.mark.parametrize("protocol", ["official", "pangu"])
def test_bad_rows_of_clue_are_named(tmp_path, task, protocol):
    row, message = CLUE_ROWS[task]
    (tmp_path / "dev.json").write_text("\n" + json.dumps(row) + "\n", encoding="utf-8")
    load = load_task(task)
    with pytest.raises(ValueError, match=f"dev.json:2: {message}"):
        load.items(Files(tmp_path, load.folders), protocol, "dev")
    skipping = Files(tmp_path, load.folders, "skip")
    assert load.items(skipping, protocol, "dev") == [] and len(skipping.rejected) == 1


def test_numbers_are_labels_too(tmp_path):
    (tmp_path / "dev.json").write_text('{"sentence": "甲", "label": 105}\n{"sentence": "甲", "label": 116}', "utf-8")
    files = Files(tmp_path, (), "skip")
    (item,) = load_task("tnews").items(files, "official", "dev")
    assert item.answer == "游戏" and len(files.rejected) == 1


def test_files_of_other_shapes_are_named(tmp_path):
    def check(task: str, files: dict[str, str], message: str) -> None:
        for name, text in files.items():
            (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            load_task(task).items(Files(tmp_path), "official", "dev")
        for name in files:
            (tmp_path / name).unlink()

    check("c3", {"d-dev.json": '[[["甲"], [{"question": "乙"}]]]'}, r"d-dev.json:\[1\]: expected \[\[texts\]")
    question = {"question": "乙", "choice": ["丙", "丁"], "answer": "戊"}
    check("c3", {"dev.json": json.dumps([[["甲"], [question], "1"]])}, r"dev.json:\[1\]\[1\]: \"answer\" is none of")
    check("c3", {}, "dev.json does not exist .nor d-dev.json, m-dev.json.")
    row = json.dumps({"candidates": ["甲", "乙"], "content": ["丙#idiom000001#丁"]})
    check("chid", {"dev.json": row, "dev_answer.json": "{}"}, "dev.json:1: the file of answers has no candidate for #i")
    check("chid", {"dev.json": '{"content": "甲"}', "dev_answer.json": "{}"}, 'dev.json:1: "content" must be a list')
    check("chid", {"dev.json": row, "dev_answer.json": "{"}, "dev_answer.json: malformed JSON")
    check(
        "cmrc2018", {"dev.json": '{"data": [{"paragraphs": [{"qas": [{}]}]}]}'}, "dev.json: not in the format of SQuAD"
    )
    check("tnews", {"dev.json": "甲\n"}, "dev.json:1: malformed JSON")
    check("tnews", {"dev.json": "[" * 100_000}, "dev.json:1: malformed JSON")
    (tmp_path / "dev.json").write_bytes("{}甲".encode("gbk"))
    with pytest.raises(ValueError, match="dev.json:1: not UTF-8"):
        load_task("tnews").items(Files(tmp_path), "official", "dev")
    with pytest.raises(ValueError, match="^data_dir: .*absent does not exist"):
        Files(tmp_path / "absent")
    with pytest.raises(ValueError, match="on_bad_row: ignore: choose from error, skip"):
        Files(tmp_path, on_bad_row="ignore")


def test_byte_order_marks_do_not_matter(ceval, encoder):
    path = ceval / "ceval/val/law_val.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert examine(ceval, encoder).summary["num_items"] == 8
    (ceval / "dev.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"sentence": "甲", "label": "116"}).encode())
    assert len(load_task("tnews").items(Files(ceval), "official", "dev")) == 1


def test_where_the_files_of_a_benchmark_may_lie(tmp_path):
    folders = load_task("ocnli").folders
    for name in ("", "ocnli_public", "clue/ocnli", "CLUE/OCNLI"):
        root = tmp_path / f"case{name.replace('/', '-')}"
        (root / name).mkdir(parents=True)
        assert Files(root, folders).folder == root / name


def test_lines_of_json_are_read_as_those_of_records_are(tmp_path):
    path = tmp_path / "rows.json"
    good = '{"text": "甲\u2028乙"}'.encode()
    path.write_bytes(b"\xef\xbb\xbf" + good + b"\r\n\n" + b'{"text": "\xff"}\n' + b"[1]\n{\n" + good)
    files = Files(tmp_path, on_bad_row="skip")
    assert [(row.where, row.fields) for row in files.json_lines(path)] == [
        (f"{path}:{number}", {"text": "甲\u2028乙"}) for number in (1, 6)
    ]
    assert [rejected.partition(": ")[0] for rejected in files.rejected] == [f"{path}:{number}" for number in (3, 4, 5)]
    assert "not UTF-8" in files.rejected[0] and "malformed JSON" in files.rejected[2]
    with pytest.raises(ValueError, match="rows.json:3: not UTF-8"):
        list(Files(tmp_path).json_lines(path))

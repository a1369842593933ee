"""Rows whose answers are good or bad by themselves (KTO): those of one prompt are one item, and keep their marks."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from keju.data_prepare.corpora import records
from keju.data_prepare.corpus import BadRow, Item

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


def kto(prompt, completion, label):
    return {"prompt": prompt, "completion": completion, "label": label}


def marked(prompt, *answers):
    answers = [{"answer": text, "score": int(good), "is_good": good} for text, good in answers]
    return {"prompt": prompt, "answers": answers}


def test_kto_rows_of_one_prompt_are_one_item(tmp_path):
    found = rows(tmp_path, [kto("甲", "好", True), kto("甲", "坏", 0), kto("乙", "好", "yes"), {"text": "文"},
                            kto("甲", "又", True)])  # fmt: skip
    assert found == [
        marked("甲", ("好", True), ("坏", False)),
        marked("乙", ("好", True)),
        {"text": "文"},
        marked("甲", ("又", True)),
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "甲", "completion": "坏", "label": "0"},
        {"instruction": "甲", "input": "", "output": "坏", "kto_tag": False},
        {"query": "甲", "response": "坏", "label": False},
        {"messages": [{"role": "user", "content": "甲"}, {"role": "assistant", "content": "坏"}], "label": 0},
        {"conversations": [{"from": "human", "value": "甲"}, {"from": "gpt", "value": "坏"}], "kto_tag": False},
        {"conversation": [{"human": "甲", "assistant": "坏"}], "label": "no"},
    ],
)
def test_answers_that_are_marked_as_bad_keep_their_mark(tmp_path, row):
    assert rows(tmp_path, [row, row]) == [marked("甲", ("坏", False), ("坏", False))]


def test_a_mark_that_cannot_be_understood_is_a_bad_row(tmp_path):
    first, bad = rows(tmp_path, [kto("甲", "好", True), kto("甲", "坏", "maybe")])
    assert (bad if isinstance(bad, BadRow) else first).where == "data.jsonl:2"


def test_pretraining_rows_with_labels_stay_texts(tmp_path):
    assert rows(tmp_path, [{"prompt": "春", "label": "眠"}] * 2) == [{"prompt": "春", "label": "眠"}] * 2


def test_fields_beside_questions_under_other_names(tmp_path):
    row = {"query": "甲", "response": "好", "rejected_response": "坏", "system": "令", "history": [["乙", "丙"]]}
    (found,) = rows(tmp_path, [row])
    assert [turn["content"] for turn in found["prompt"]] == ["令", "乙", "丙", "甲"]
    assert [answer["answer"] for answer in found["answers"]] == ["好", "坏"]
    (bad,) = rows(tmp_path, [{"query": "甲", "response": "好", "images": ["a.jpg"]}])
    assert isinstance(bad, BadRow) and '"images"' in bad.reason


def test_nulls_of_merged_tables_are_absent(tmp_path):
    import pyarrow.parquet

    table = [
        {"prompt": "甲", "completion": "坏", "label": 0.0, "messages": None},
        {"prompt": None, "completion": None, "label": None,
         "messages": [{"role": "user", "content": "问", "weight": None},
                      {"role": "assistant", "content": "答", "weight": 0.0}]},
    ]  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), tmp_path / "a.parquet")
    found = [item.row for item in read(tmp_path / "a.parquet")]
    assert found == [
        marked("甲", ("坏", False)),
        {"messages": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答", "weight": 0}]},
    ]


def kto_rows():
    lengths = (1, 5, 2, 1, 1, 9, 3)
    return [kto(f"问{n}", f"答{k}", k % 2 == 0) for n, length in enumerate(lengths) for k in range(length)]


@pytest.mark.parametrize("piece_bytes", [1, 70, 100, 150, 400])
@pytest.mark.parametrize("blank", ["", "\n \n"])
def test_kto_runs_are_whole_where_pieces_cut_them(tmp_path, piece_bytes, blank):
    path = written(tmp_path, "".join(json.dumps(row) + "\n" + blank for row in kto_rows()))
    whole = read(path)
    assert len(whole) == 7 and len(records.pieces(path, piece_bytes)) > 2
    assert read(path, piece_bytes) == whole


@pytest.mark.parametrize("piece_bytes", [1, 10, 24, 40, 100])
def test_kto_runs_are_whole_in_a_table_that_is_cut(tmp_path, piece_bytes):
    lines = ["\t".join(("prompt", "completion", "label"))]
    lines += ["\t".join((row["prompt"], row["completion"], str(row["label"]))) for row in kto_rows()]
    path = written(tmp_path, "\n".join(lines), "data.tsv")
    assert len(records.pieces(path, piece_bytes)) > 2
    assert read(path, piece_bytes) == read(path) and len(read(path)) == 7


def test_kto_runs_are_whole_over_row_groups(tmp_path):
    path = tmp_path / "data.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(kto_rows()), path, row_group_size=2)
    assert len(records.pieces(path, 1)) == 11
    assert read(path, 1) == read(path) and len(read(path)) == 7

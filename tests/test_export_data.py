"""The stage that exports: from real files to files of others and back, and what it says of what does not fit."""

import json
import os
import sys

import pytest

from keju import export_data
from keju.records.reading import read_records
from keju.training.launch import run_guarded

SYSTEM = {"role": "system", "content": "你是学者"}
CHAT = {"messages": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]}
RANKED = {
    "prompt": "问",
    "answers": [{"answer": text, "score": score} for text, score in (("坏", 0), ("好", 2), ("中", 1))],
}


@pytest.fixture
def export(monkeypatch, tmp_path, capsys):
    def run(rows, *flags, output="out.jsonl"):
        source = tmp_path / "in.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        target = tmp_path / output
        monkeypatch.setattr(
            sys,
            "argv",
            ["export_data.py", "--input_files", str(source), "--output_file", str(target), *map(str, flags)],
        )
        code = run_guarded(export_data.main)
        return code, target, capsys.readouterr()

    return run


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_pairs_of_answers(export):
    code, path, shown = export([RANKED, RANKED], "--layout", "preference")
    assert code == 0 and "6 rows of 2 records as preference" in shown.out
    assert [(row["chosen"], row["rejected"]) for row in lines(path)[:3]] == [("好", "坏"), ("好", "中"), ("中", "坏")]
    code, path, shown = export(
        [RANKED], "--layout", "preference", "--pairs", "best_worst", "--overwrite", "--conversational"
    )
    (row,) = lines(path)
    assert row["rejected"] == [{"role": "assistant", "content": "坏"}]
    assert "without answers between the best and the worst: 1, such as" in shown.out and "in.jsonl:1" in shown.out


def test_what_does_not_fit_stops_with_its_place_or_is_counted(export, tmp_path):
    rows = [RANKED, {"messages": [SYSTEM, *CHAT["messages"]]}, CHAT, {"a": 1}]
    code, path, shown = export(rows, "--layout", "preference")
    assert code == 2 and not path.exists() and len(shown.err.strip().splitlines()) == 1
    assert f"{tmp_path}/in.jsonl:2: ranked answers are needed here" in shown.err
    code, path, shown = export(rows, "--layout", "preference", "--on_bad_line", "skip")
    assert code == 0 and len(lines(path)) == 3
    assert f"left out 2, such as {tmp_path}/in.jsonl:2: ranked answers are needed here" in shown.out
    assert "left out 1, such as" in shown.out and 'fields "a" are no known format' in shown.out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--layout", "alpacca"], "--layout alpacca: expected one of records, alpaca"),
        (["--pairs", "some"], "--pairs some: expected one of all, best_worst"),
        (["--on_bad_line", "keep"], "--on_bad_line keep: expected one of error, skip"),
        (["--layout", "text", "--on_bad_line", "skip"], "nothing to write: turns become a text only"),
        (["--output_file", "a.doc"], "a.doc: the name must end in .jsonl"),
        (["--input_files", "absent.jsonl"], "--input_files: absent.jsonl: no such file or folder"),
        (["--input", "a"], "unknown flag --input; did you mean --input_files?"),
    ],
)
def test_mistakes_end_with_one_line(export, tmp_path, flags, message):
    code, _, shown = export([CHAT], *flags)
    assert code == 2 and message in shown.err and len(shown.err.strip().splitlines()) == 1
    assert os.listdir(tmp_path) == ["in.jsonl"]


def test_a_file_that_is_there_is_not_replaced_unasked(export):
    assert export([CHAT], "--layout", "messages")[0] == 0
    code, path, shown = export([CHAT, CHAT], "--layout", "messages")
    assert code == 2 and "is there already; name another or replace it with --overwrite" in shown.err
    assert len(lines(path)) == 1


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_every_stage_reads_what_is_exported(export, suffix):
    for layout in ("records", "alpaca", "sharegpt", "messages"):
        code, path, _ = export([CHAT, CHAT], "--layout", layout, output=f"{layout}{suffix}")
        assert code == 0 and list(read_records(path))[0] == list(read_records(path.with_name("in.jsonl")))[0]


def test_real_preferences_become_a_parquet_file_that_datasets_reads(export, shared, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    source = shared / "data/preference/dpo_zh_500.jsonl"
    flags = ["--input_files", str(source), "--layout", "preference", "--conversational"]
    code, path, _ = export([CHAT], *flags, output="out.parquet")
    assert code == 0
    table = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))
    assert table.num_rows == 500 and table.column_names == ["prompt", "chosen", "rejected"]
    record = read_records(source)[0]
    assert table[0]["chosen"] == [{"role": "assistant", "content": record.best.text}]
    assert [turn["content"] for turn in table[0]["prompt"]] == [message.content for message in record.messages]

"""Files of a user's own through the stage: few rows, own splits, cleaning that changes nothing, stale records."""

import gzip
import json
import lzma
import shutil
import sys

import pytest
import zstandard

from keju import prepare_data
from keju.records.locks import only_writer
from keju.training.launch import run_guarded


def row(number, of=""):
    return {"instruction": f"{of}问题{number * 7919}是什么？", "output": f"{of}回答{number * 104729}，是第{number}个。"}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows), encoding="utf-8")


@pytest.fixture
def prepare(monkeypatch, tmp_path):
    def run(*flags):
        given = ["--corpus", "records", "--raw_dir", tmp_path / "raw", "--output_dir", tmp_path / "out"]
        given += ["--vocab_size", "0", "--near_duplicates", "2", *flags]
        monkeypatch.setattr(sys, "argv", ["prepare_data.py", *map(str, given)])
        return run_guarded(prepare_data.main)

    return run


def said(folder, pattern="*.jsonl"):
    """(question, answer) of every row."""
    rows = [json.loads(line) for path in folder.glob(pattern) for line in path.read_text("utf-8").splitlines()]
    return {tuple(turn["content"] for turn in one["messages"]) for one in rows if "messages" in one}


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("seed", [1, 2])
def test_few_rows(prepare, tmp_path, count, seed, capsys):
    write(tmp_path / "raw" / "a.jsonl", [row(number) for number in range(count)])
    assert prepare("--seed", seed, "--test_share", 0.3, "--dev_share", 0.3) == 0
    assert list((tmp_path / "out").glob("chat_train*"))
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("others", [(), ("--seed", 7)])
def test_killed_while_a_work_folder_is_deleted(prepare, tmp_path, monkeypatch, others):
    """At the end of a run, or by a run with other settings: what is left of it is not gone on with."""
    write(tmp_path / "raw" / "a.jsonl", [row(number) for number in range(30)])
    delete = shutil.rmtree

    def killed(*args, **options):
        raise KeyboardInterrupt

    def killed_in_the_middle(path, **options):
        if not (path.name == ".out.work" and (path / "records").exists()):
            return delete(path, **options)
        delete(path / "records")
        return killed()

    if others:
        with monkeypatch.context() as patch:
            patch.setattr(prepare_data, "write_page", killed)
            assert prepare() == 130
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed_in_the_middle)
        assert prepare(*others) == 130
    delete(tmp_path / "out", ignore_errors=True)
    assert prepare() == 0
    assert len(said(tmp_path / "out", "chat_*.jsonl")) + len(said(tmp_path / "out", "prompts_*.jsonl")) >= 26


def test_where_every_row_is_dropped_it_is_said_why(prepare, tmp_path, capsys):
    write(tmp_path / "raw" / "a.jsonl", [{"foo": 1}] * 3)
    assert prepare() == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "nothing to train on is left of 3 rows (3 dropped:" in line and "a.jsonl:1" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]


def test_own_splits_are_kept_and_rows_of_two_stay_in_the_one_that_is_held_out(prepare, tmp_path, capsys):
    raw, splits = tmp_path / "raw", {"train": 40, "dev": 10, "test": 10}
    for name, count in splits.items():
        write(raw / f"{name}.jsonl", [row(number, name) for number in range(count)])
    with (raw / "train.jsonl").open("a") as file:
        file.write(json.dumps(row(3, "test")) + "\n")
    assert prepare("--prompts_share", 0) == 0
    for name, count in splits.items():
        found = said(tmp_path / "out", f"chat_{name}.jsonl")
        assert len(found) == count and all(question.startswith(name) for question, _ in found)
    assert "splits of their own: train from train.jsonl; dev from dev.jsonl; test from" in capsys.readouterr().out
    assert prepare("--own_splits", "pool", "--overwrite_output_dir") == 0
    assert len({question[:4] for question, _ in said(tmp_path / "out", "chat_train.jsonl")}) > 1


def test_a_correction_in_the_middle_of_a_large_file_is_built_anew(prepare, tmp_path, capsys):
    rows = [row(number) for number in range(3000)]
    write(tmp_path / "raw" / "a.jsonl", rows)
    assert prepare() == 0 and prepare() == 0
    rows[1500]["output"] = rows[1500]["output"].replace("第1500", "第0051")
    write(tmp_path / "raw" / "a.jsonl", rows)
    assert prepare() == 2
    assert "another source" in capsys.readouterr().err
    assert prepare("--overwrite_output_dir") == 0
    assert any("第0051" in turn for turns in said(tmp_path / "out") for turn in turns)


CURATED = [
    *("<b>粗</b>体 &lt; &nbsp;", "a,,,,,b", "vector<p> x;", "键:\n    值:  1\t2\n\n\n\n完"),
    *("１＋１", "13800138000！！！！！！", "English only."),
]


def test_cleaning_changes_nothing_of_curated_records(prepare, tmp_path):
    write(tmp_path / "raw" / "a.jsonl", [{"instruction": f"问{text}", "output": text} for text in CURATED])
    assert prepare("--prompts_share", 0, "--dev_share", 0, "--test_share", 0) == 0
    assert said(tmp_path / "out") == {(f"问{text}", text) for text in CURATED}


def test_a_step_that_is_asked_for_runs_and_shows_what_it_did(prepare, tmp_path, capsys):
    write(tmp_path / "raw" / "a.jsonl", [{"instruction": "问什么好呢？", "output": "<b>粗</b>体字"}])
    assert prepare("--remove_markup", "true") == 0
    (step,) = [step for step in json.loads((tmp_path / "out" / "report.json").read_text())["steps"] if "shown" in step]
    assert step["shown"] == [{"where": "a.jsonl:1", "before": "<b>粗</b>体字", "after": "粗体字"}]
    assert "<b>粗</b>体字 -> 粗体字" in capsys.readouterr().out


def test_further_suffixes_are_read_and_others_named(prepare, tmp_path, capsys):
    write(tmp_path / "raw" / "A.JSONL", [row(1)])
    write(tmp_path / "raw" / "b.ndjson", [row(2)])
    (tmp_path / "raw" / "c.jsonl.xz").write_bytes(lzma.compress(json.dumps(row(3)).encode()))
    (tmp_path / "raw" / "d.xlsx").write_bytes(b"PK")
    assert prepare("--prompts_share", 0, "--dev_share", 0, "--test_share", 0) == 0
    assert len(said(tmp_path / "out")) == 3
    assert "not read: d.xlsx: is a spreadsheet" in capsys.readouterr().out


def test_a_slip_in_an_array_loses_one_row(prepare, tmp_path):
    rows = [row(number) for number in range(2000)]
    text = json.dumps(rows, ensure_ascii=False, indent=1).replace(f'"{rows[20]["output"]}"', "{oops", 1)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.json").write_text(text, encoding="utf-8")
    assert prepare("--prompts_share", 0, "--dev_share", 0, "--test_share", 0) == 0
    assert len(said(tmp_path / "out")) == 1999


@pytest.mark.parametrize("packing", ["xz", "gz", "zst"])
@pytest.mark.parametrize("on_bad_line", ["skip", "error"])
def test_a_file_that_is_cut_off_ends_the_run_in_one_line(prepare, tmp_path, capsys, packing, on_bad_line):
    """Nobody can count what is lost of it."""
    pack = {"xz": lzma.compress, "gz": gzip.compress, "zst": zstandard.compress}[packing]
    write(tmp_path / "raw" / "a.jsonl", [row(number) for number in range(50)])
    write(tmp_path / "rows", [row(number, "乙") for number in range(500)])
    whole = pack((tmp_path / "rows").read_bytes())
    damaged = tmp_path / "raw" / f"d.jsonl.{packing}"
    damaged.write_bytes(whole[: len(whole) // 2])
    assert prepare("--on_bad_line", on_bad_line) == 2
    said_last = capsys.readouterr().err.splitlines()[-1]
    assert said_last.startswith(f"error: {damaged}:") and said_last.endswith("; make or copy it again")
    assert not (tmp_path / "out").exists()
    damaged.write_bytes(whole)
    assert prepare("--on_bad_line", on_bad_line) == 0
    assert "read: 550 -> 550 rows" in capsys.readouterr().out


def test_a_second_run_into_one_folder_is_refused(prepare, tmp_path, capsys):
    write(tmp_path / "raw" / "a.jsonl", [row(1)])
    with only_writer(tmp_path / "out"):
        assert prepare() == 2
    assert "another process is writing to" in capsys.readouterr().err
    assert prepare() == 0


@pytest.mark.parametrize("name", ["../x", "os", "", "records.py"])
def test_hostile_corpus_names(prepare, name, capsys):
    assert prepare("--corpus", name) == 2
    assert "there are: " in capsys.readouterr().err

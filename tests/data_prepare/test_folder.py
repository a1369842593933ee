"""The folder of a data set: whole or not there, reused or refused, and nobody else's files are lost."""

import os

import pytest

from keju.data_prepare.folder import REPORT, describe, own_files, reusable_report
from keju.records.writing import whole_folder, write_json

MADE_FROM = {"corpus": "idiom", "seed": 1}


def write_data_set(folder, made_from=MADE_FROM, text="甲"):
    with whole_folder(folder, own=own_files) as aside:
        (aside / "train.jsonl").write_text(text, encoding="utf-8")
        (aside / "tokenizer").mkdir()
        (aside / "tokenizer" / "tokenizer.json").write_text("{}")
        write_json(aside / REPORT, describe(aside, made_from))


def test_written_once_then_reused(tmp_path):
    folder = tmp_path / "deep" / "data"
    assert reusable_report(folder, MADE_FROM, overwrite=False) is None
    write_data_set(folder)
    report = reusable_report(folder, MADE_FROM, overwrite=False)
    assert report["contents"] == {"tokenizer": 2, "train.jsonl": 3}
    assert reusable_report(folder, MADE_FROM, overwrite=True) is None
    assert os.listdir(folder.parent) == ["data"]


def test_empty_folder_is_free(tmp_path):
    assert reusable_report(tmp_path, MADE_FROM, overwrite=False) is None


@pytest.mark.parametrize("missing", ["train.jsonl", "tokenizer/tokenizer.json"])
def test_changed_files_are_not_reused(tmp_path, missing):
    write_data_set(tmp_path / "data")
    (tmp_path / "data" / missing).unlink()
    with pytest.raises(ValueError, match="whose files were changed.*--overwrite_output_dir"):
        reusable_report(tmp_path / "data", MADE_FROM, overwrite=False)


def test_another_data_set_is_refused_by_naming_what_differs(tmp_path):
    write_data_set(tmp_path / "data")
    with pytest.raises(ValueError, match="holds a data set with another max_idioms, seed; .*--overwrite_output_dir"):
        reusable_report(tmp_path / "data", {"corpus": "idiom", "seed": 2, "max_idioms": 5}, overwrite=False)


@pytest.mark.parametrize("report", [None, "{", "[]", '{"loss": 1}'])
def test_other_files_are_refused(tmp_path, report):
    (tmp_path / "thesis.docx").write_text("years of work")
    if report is not None:
        (tmp_path / REPORT).write_text(report)
    with pytest.raises(ValueError, match=r"^output_dir: .* other files \(.*thesis.docx\).*--overwrite_output_dir"):
        reusable_report(tmp_path, MADE_FROM, overwrite=False)


def test_output_dir_that_is_a_file(tmp_path):
    (tmp_path / "data").write_text("")
    with pytest.raises(ValueError, match="is a file, expected a folder"):
        reusable_report(tmp_path / "data", MADE_FROM, overwrite=True)


def test_overwriting_replaces_the_data_set_and_keeps_other_files(tmp_path):
    folder = tmp_path / "data"
    write_data_set(folder)
    (folder / "notes.txt").write_text("mine")
    with whole_folder(folder, own=own_files) as aside:
        (aside / "dev.jsonl").write_text("乙")
        write_json(aside / REPORT, describe(aside, MADE_FROM))
    assert sorted(os.listdir(folder)) == ["dev.jsonl", "notes.txt", REPORT]
    assert os.listdir(tmp_path) == ["data"]


def test_failure_leaves_what_was_there(tmp_path):
    folder = tmp_path / "data"
    with pytest.raises(RuntimeError), whole_folder(folder, own=own_files):
        raise RuntimeError("died")
    assert os.listdir(tmp_path) == []
    write_data_set(folder)
    with pytest.raises(RuntimeError), whole_folder(folder, own=own_files) as aside:
        (aside / "train.jsonl").write_text("half")
        raise RuntimeError("died")
    assert reusable_report(folder, MADE_FROM, overwrite=False) is not None
    assert os.listdir(tmp_path) == ["data"]

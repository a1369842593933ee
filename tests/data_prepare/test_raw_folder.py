"""Which files a folder has, what they are known again by, and whose split they say they are."""

import os
import time

import pytest

from keju.data_prepare.corpora.records import not_read
from keju.data_prepare.raw_folder import fingerprint, own_splits, raw_files


def test_a_change_of_equal_length_in_the_middle_is_seen(tmp_path):
    raw, memory = tmp_path / "raw", tmp_path / "memory"
    raw.mkdir()
    (raw / "a.jsonl").write_bytes(b"x" * (5 << 20))
    old = time.time() - 100
    os.utime(raw / "a.jsonl", (old, old))
    first = fingerprint(raw, memory)
    assert fingerprint(raw, memory) == first
    with (raw / "a.jsonl").open("r+b") as file:
        file.seek(2 << 20)
        file.write(b"y")
    os.utime(raw / "a.jsonl", (old, old))
    assert fingerprint(raw, memory) != first


def test_links_are_followed_once_and_circles_end(tmp_path):
    raw, elsewhere = tmp_path / "raw", tmp_path / "elsewhere"
    (raw / "sub").mkdir(parents=True)
    elsewhere.mkdir()
    (elsewhere / "far.jsonl").write_text("{}")
    (raw / "sub" / "near.jsonl").write_text("{}")
    (raw / "away").symlink_to(elsewhere)
    (raw / "again").symlink_to(raw / "sub")
    (raw / "sub" / "round").symlink_to(raw)
    (raw / "a.jsonl").symlink_to(raw / "sub" / "near.jsonl")
    (raw / "gone.jsonl").symlink_to(tmp_path / "nothing")
    names, left_out = raw_files(raw)
    assert names == ["away/far.jsonl", "sub/near.jsonl"]
    assert left_out["gone.jsonl"] == "is a link to nothing"
    assert left_out.keys() == {"again", "sub/round", "a.jsonl", "gone.jsonl"}


def test_every_file_is_read_or_named(tmp_path):
    for name in ("B.JSONL", "c.ndjson", "d.jsonl.xz", "e.xlsx", "f.zip", "dataset_info.json", "README.md", ".hidden"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "empty.jsonl").write_text("")
    assert not_read(tmp_path).keys() == {"e.xlsx", "f.zip", "dataset_info.json", "README.md", ".hidden", "empty.jsonl"}


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        ("train.jsonl dev.jsonl test.jsonl", "train dev test"),
        ("data/train-00000-of-00002.parquet data/validation-00000-of-00001.parquet", "train dev"),
        ("train/a.jsonl test/a.jsonl more.jsonl", "train test train"),
        ("train_sft.jsonl test_sft.jsonl", "train test"),
        ("alpaca_train.json.gz alpaca_eval.json.gz", "train dev"),
        ("mine.jsonl test.jsonl", "train test"),
        ("test_generation.jsonl unit.jsonl", ""),
        ("train.jsonl more.jsonl", ""),
        ("test.jsonl", ""),
        ("v1.2_train.jsonl v1.2_test.jsonl", "train test"),
    ],
)
def test_own_splits(files, splits):
    names = files.split()
    assert own_splits(names) == (dict(zip(names, splits.split(), strict=True)) if splits else {})

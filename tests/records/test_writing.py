"""Files are whole or absent."""

import errno
import json
import os
import stat

import pytest

from keju.records.reading import read_records
from keju.records.writing import whole_file, whole_files, whole_folder, write_json, write_jsonl


def test_round_trip_creates_folders_and_keeps_characters(tmp_path):
    path = tmp_path / "new" / "folder" / "data.jsonl"
    texts = ["画龙点睛", "line\nbreak\u2028", "表情🐉", '引号"与\\']
    assert write_jsonl(path, ({"text": text} for text in texts)) == 4
    assert [record.text for record in read_records(path)] == texts
    assert "画龙点睛" in path.read_text(encoding="utf-8")
    assert path.read_bytes().count(b"\n") == 4


def test_failure_half_way_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "data.jsonl"
    write_jsonl(path, [{"text": "旧"}])

    def rows():
        yield {"text": "新"}
        raise RuntimeError("died")

    with pytest.raises(RuntimeError, match="died"):
        write_jsonl(path, rows())
    assert os.listdir(tmp_path) == ["data.jsonl"]
    assert read_records(path)[0].text == "旧"


def test_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_jsonl(tmp_path / "data.jsonl", [{"text": "甲"}])
    assert os.listdir(tmp_path) == []


def test_nan_is_refused(tmp_path):
    with pytest.raises(ValueError):
        write_jsonl(tmp_path / "data.jsonl", [{"score": float("nan")}])
    assert os.listdir(tmp_path) == []


def test_json_is_indented_and_readable_by_others(tmp_path):
    path = tmp_path / "report.json"
    write_json(path, {"成语": 1})
    assert json.loads(path.read_text(encoding="utf-8")) == {"成语": 1}
    assert path.read_text(encoding="utf-8").startswith('{\n  "成语"')
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_files_take_their_places_in_a_folder_that_keeps_the_others(tmp_path):
    for name in ("weights", "log"):
        (tmp_path / name).write_text("old")
    with pytest.raises(RuntimeError, match="died"), whole_files(tmp_path) as aside:
        (aside / "weights").write_text("half")
        raise RuntimeError("died")
    assert sorted(os.listdir(tmp_path)) == ["log", "weights"] and (tmp_path / "weights").read_text() == "old"
    with whole_files(tmp_path) as aside:
        (aside / "weights").write_text("new")
        assert (tmp_path / "weights").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["log", "weights"]
    assert [(tmp_path / name).read_text() for name in ("weights", "log")] == ["new", "old"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
@pytest.mark.parametrize("whole", [whole_file, whole_folder])
def test_a_full_disk_is_named_by_what_people_asked_for(tmp_path, whole):
    """Writing to an open file names none, and opening one aside names what will not be there any more."""

    def unnamed(aside):
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"a")

    def aside_named(aside):
        raise OSError(errno.ENOSPC, "No space left on device", str(aside / "a" if aside.is_dir() else aside))

    def another(aside):
        raise OSError(errno.ENOSPC, "No space left on device", "/elsewhere")

    for write, named in ((unnamed, tmp_path / "new"), (aside_named, tmp_path / "new"), (another, "/elsewhere")):
        with pytest.raises(OSError, match="No space left") as caught, whole(tmp_path / "new") as aside:
            write(aside)
        assert caught.value.filename == str(named)
        assert os.listdir(tmp_path) == []

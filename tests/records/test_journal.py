from __future__ import annotations

import json
import subprocess
import sys

import pytest

from keju.records.journal import Journal

ROWS = [{"text": "一\u2028二\x85三\x0b}"}, {"text": "a }"}]


def test_rows_come_back_whatever_splits_lines_elsewhere(tmp_path):
    path = tmp_path / "rows.jsonl"
    journal = Journal(path)
    journal.append(ROWS[0])
    journal.extend(ROWS[1:])
    assert list(journal.read()) == ROWS and path.read_bytes().count(b"\n") == 2


def test_no_file_has_no_rows(tmp_path):
    assert list(Journal(tmp_path / "none.jsonl").read()) == []


def test_a_kill_at_any_byte_costs_the_last_row_alone(tmp_path):
    path = tmp_path / "rows.jsonl"
    journal = Journal(path)
    journal.extend(ROWS)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for size in range(first, len(whole)):
        path.write_bytes(whole[:size])
        left = ROWS[: 2 if size == len(whole) - 1 else 1]
        assert list(journal.read()) == left
        journal.append({"next": size})
        assert list(journal.read()) == [*left, {"next": size}]
        assert path.read_bytes().startswith(whole[:first])


def test_a_last_line_of_any_length_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("keju.records.journal.BLOCK", 2)
    journal = Journal(tmp_path / "rows.jsonl")
    for size in range(40):
        for left in ([{"text": "a" * size}], [{}, {"text": "a" * size}]):
            journal.rewrite(left)
            for cut in (b"", b"{", b'{"a": "}', b"{" + b"\0" * size):
                with journal.path.open("ab") as file:
                    file.write(cut)
                left.append({"size": size})
                journal.append(left[-1])
                assert list(journal.read()) == left


def test_rows_of_several_processes_stay_whole(tmp_path):
    code = """
import sys
from keju.records.journal import Journal
for number in range(200):
    Journal(sys.argv[1]).append({"of": sys.argv[2], "number": number, "text": "a" * 20_000})
"""
    path = tmp_path / "rows.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), name]) for name in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    for name in "ab":
        assert [row["number"] for row in Journal(path).read() if row["of"] == name] == list(range(200))


def test_rows_can_be_taken_away(tmp_path):
    journal = Journal(tmp_path / "rows.jsonl")
    journal.extend({"step": step} for step in range(4))
    journal.rewrite(row for row in journal.read() if row["step"] < 2)
    assert list(journal.read()) == [{"step": 0}, {"step": 1}]


@pytest.mark.parametrize("line", ["{", "[1]", "3", "null", '{"a": 1', "\udcff", "[" * 100_000])
def test_any_other_broken_line_is_named(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(ROWS[0])}\n{line}\n{json.dumps(ROWS[1])}\n", errors="surrogateescape")
    with pytest.raises(ValueError, match=r"rows.jsonl:2: not JSON"):
        list(Journal(path).read())
    assert list(Journal(path).read(on_bad_line="skip")) == ROWS

from __future__ import annotations

import json

import pytest

from keju.records.journal import append_rows, read_rows

ROWS = [{"text": "一\u2028二\x85三\x0b}"}, {"text": "a }"}]


def test_rows_come_back_whatever_splits_lines_elsewhere(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_rows(path, ROWS[:1])
    append_rows(path, ROWS[1:])
    assert list(read_rows(path)) == ROWS and path.read_bytes().count(b"\n") == 2


def test_no_file_has_no_rows(tmp_path):
    assert list(read_rows(tmp_path / "none.jsonl")) == []


def test_a_kill_at_any_byte_costs_the_last_row_alone(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_rows(path, ROWS)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for size in range(first, len(whole)):
        path.write_bytes(whole[:size])
        assert list(read_rows(path)) == ROWS[: 2 if size == len(whole) - 1 else 1]


@pytest.mark.parametrize("line", ["{", "[1]", "3", "null", '{"a": 1', "\udcff", "[" * 100_000])
def test_any_other_broken_line_is_named(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(ROWS[0])}\n{line}\n{json.dumps(ROWS[1])}\n", errors="surrogateescape")
    with pytest.raises(ValueError, match=r"rows.jsonl:2: not JSON"):
        list(read_rows(path))

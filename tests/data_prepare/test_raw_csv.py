"""CSV with broken quotes: one row is lost, and named."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keju.data_prepare import raw_csv
from keju.data_prepare.corpus import BadRow, Piece
from keju.data_prepare.raw_csv import csv_cells, csv_rows

COLUMNS = ("q", "a", "n")


def rows_of(folder, text: str | bytes):
    data = text if isinstance(text, bytes) else text.encode()
    (folder / "a.csv").write_bytes(b"q,a,n\n" + data)
    return list(csv_rows(folder, Piece("a.csv"), COLUMNS))


def fields(row) -> tuple:
    where, values = row
    return (int(where.split(":")[1]), *(values[name] for name in COLUMNS))


def test_quotes_commas_and_line_breaks(tmp_path):
    rows = rows_of(tmp_path, '甲,"一,二",1\r\n"说 ""好""","三\r\n四\n\n五",0\n\n乙,5" 屏,1')
    assert [fields(row) for row in rows] == [
        (2, "甲", "一,二", "1"),
        (3, '说 "好"', "三\n四\n\n五", "0"),
        (8, "乙", '5" 屏', "1"),
    ]


@pytest.mark.parametrize(
    "after",
    ["a,b,0\nc,d,1\n", 'a,b,0\nc,"d,e",1\n', 'a,b,0\nc,"",1\nd,e,1\n', 'a,he said "x",0\n'],
    ids=[
        "to the end of the file",
        "closed by the next quoted field",
        "an empty quoted field",
        "a quote within a field",
    ],
)
def test_a_stray_quote_costs_its_own_row(tmp_path, after):
    good = rows_of(tmp_path, after)
    first, bad, *rest = rows_of(tmp_path, 'x,y,1\n坏,"没有结束,0\n' + after)
    assert fields(first) == (2, "x", "y", "1")
    assert isinstance(bad, BadRow) and bad.where == "a.csv:3"
    assert [fields(row)[1:] for row in rest] == [fields(row)[1:] for row in good]
    assert fields(rest[0])[0] == 4


def test_a_quote_is_closed_within_a_number_of_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(raw_csv, "MAX_ROW_LINES", 3)
    rows = rows_of(tmp_path, '甲,"一\n二\n三",1\n乙,"一\n二\n三\n四",1\n')
    assert fields(rows[0]) == (2, "甲", "一\n二\n三", "1")
    assert rows[1] == BadRow(
        "a.csv:5", "a quote is not closed within 3 lines, nor before the end of the file; double it or close it"
    )
    assert all(isinstance(row, BadRow) for row in rows[2:])


def test_rows_of_other_columns(tmp_path):
    few, many, good = rows_of(tmp_path, "a,b\na,b,c,d\na,b,c\n")
    assert few.where == "a.csv:2" and "2 cells instead of 3 (q,a,n)" in few.reason
    assert many.where == "a.csv:3" and "4 cells instead of 3" in many.reason
    assert fields(good) == (4, "a", "b", "c")


def test_a_field_over_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(raw_csv, "MAX_CELL", 20)
    bad, good = rows_of(tmp_path, f"a,{'长' * 21},1\na,b,c\n")
    assert bad == BadRow("a.csv:2", "malformed CSV (field larger than field limit (20))")
    assert fields(good) == (3, "a", "b", "c")


def test_bad_lines_alone_and_inside_quotes(tmp_path):
    rows = rows_of(tmp_path, b'a\xff,b,c\na,"b\n\x00\nc",1\nd,e,f\n')
    assert [row.where for row in rows[:2]] == ["a.csv:2", "a.csv:4"]
    assert "not UTF-8" in rows[0].reason and "NUL" in rows[1].reason
    assert [fields(row) for row in rows[2:]] == [(6, "d", "e", "f")]


CELLS = st.lists(st.lists(st.text(alphabet='a",\n\r 好', max_size=6), min_size=1, max_size=4), max_size=6)


@settings(deadline=None)
@given(CELLS, st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_what_python_writes_is_read_back(rows, quoting):
    text = io.StringIO(newline="")
    csv.writer(text, quoting=quoting).writerows(rows)
    lines = enumerate(text.getvalue().removesuffix("\n").split("\n"), start=1)
    assert [cells for _, cells in csv_cells(lines)] == [row for row in rows if any(map(str.strip, row))]


@pytest.mark.parametrize("header", [b"q,a\n", b"a,b,1\n", b"\xff\n", b"\n", b"\nq,a,n\n"])
def test_another_header_is_refused(tmp_path, header):
    (tmp_path / "a.csv").write_bytes(header + b"a,b,c\n")
    with pytest.raises(ValueError, match=r"a\.csv:1: expected the columns q,a,n, found "):
        list(csv_rows(tmp_path, Piece("a.csv"), COLUMNS))


def test_quoted_header_with_a_mark(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbf"q","a","n"\r\na,b,c\r\n')
    assert [fields(row) for row in csv_rows(tmp_path, Piece("a.csv"), COLUMNS)] == [(2, "a", "b", "c")]

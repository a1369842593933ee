"""Lines, arrays and tables of raw files: places, broken parts, blocks of any size."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keju.data_prepare.corpus import Piece
from keju.data_prepare.formats import json_values, raw_lines
from keju.data_prepare.formats.json_values import array_items
from keju.data_prepare.formats.raw_lines import line_before, line_cuts, text_lines
from keju.data_prepare.formats.rows import rows_of


def in_blocks(data, size):
    return [data[at : at + size] for at in range(0, len(data), size)]


@given(
    st.lists(st.sampled_from([b"\n", b"ab", b"c" * 9, "\u4e2d\n".encode(), b"\r\n"])).map(b"".join), st.integers(1, 30)
)
def test_pieces_hold_every_line_once(tmp_path_factory, data, piece_bytes):
    path = tmp_path_factory.mktemp("cut") / "a.txt"
    path.write_bytes(data)
    cuts = line_cuts(path, piece_bytes)
    whole = list(text_lines([data], "utf-8"))
    parts = [line for start, end, first in cuts for line in text_lines([data[start:end]], "utf-8", first)]
    assert parts == whole
    assert all(end - start >= piece_bytes for start, end, _ in cuts[:-1])
    for start, _, _ in cuts:
        before = [line for line in data[:start].split(b"\n") if line.strip()]
        assert line_before(path, start).strip() == (before[-1].strip() if before else b"")


def test_cuts_are_found_beyond_one_block(tmp_path, monkeypatch):
    monkeypatch.setattr(raw_lines, "BLOCK", 7)
    path = tmp_path / "a.txt"
    data = b"".join(b"x" * (n % 23) + b"\n" for n in range(200))
    path.write_bytes(data)
    cuts = line_cuts(path, 50)
    assert cuts[0][0] == 0 and cuts[-1][1] == len(data)
    for start, end, first in cuts:
        assert data[start - 1 : start] in (b"", b"\n") and first == data[:start].count(b"\n") + 1
        lines = [line for line in data[:start].split(b"\n") if line]
        assert line_before(path, start) == (lines[-1] if lines else b"")
        assert end - start < 50 + 24


def test_a_line_without_end_does_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(raw_lines, "MAX_LINE", 10)
    lines = list(text_lines(in_blocks(b"a\n" + b"x" * 30 + b"\nb\n" + b"y" * 30, 4), "utf-8"))
    assert [line if isinstance(line, str) else type(line) for _, line in lines] == ["a", ValueError, "b", ValueError]
    assert [number for number, _ in lines] == [1, 2, 3, 4]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_array_items_and_their_lines(size):
    text = '\n[\n  {"text": "甲\\n[,]"},\n\n 12,\n [1,\n 2], "乙", null\n]\n'
    found = list(array_items(in_blocks(text.encode(), size), "utf-8"))
    assert found == [(3, {"text": "甲\n[,]"}), (5, 12), (6, [1, 2]), (7, "乙"), (7, None)]


@pytest.mark.parametrize("size", [1, 5, 1000])
@pytest.mark.parametrize(
    ("text", "items", "line"),
    [
        ('[{"a": 1},\n{"b": }, {"c": 3}]', 1, 2),
        ('[{"a": 1},\n{"b": 2}', 2, 2),
        ('[{"a": 1}\n{"b": 2}]', 1, 2),
        ('[{"a": 1},\n]', 1, 2),
        ('[]\n"x"', 0, 2),
        ("[" * 100_000, 0, 1),
        ("[", 0, 1),
    ],
)
def test_a_broken_array_ends_with_what_is_wrong(text, items, line, size):
    *good, (number, error) = array_items(in_blocks(text.encode(), max(size, len(text) // 50)), "utf-8")
    assert len(good) == items and all(isinstance(value, dict) for _, value in good)
    assert number == line and "malformed JSON" in str(error) and "rest of the file is not read" in str(error)


def test_empty_array_and_wrong_bytes():
    assert list(array_items([b"[ ]\n"], "utf-8")) == []
    ((_, error),) = array_items([b'["\xff"]'], "utf-8")
    assert "not UTF-8 text" in str(error)


def test_an_item_that_never_ends_is_not_read_to_the_end(monkeypatch):
    monkeypatch.setattr(json_values, "MAX_ITEM", 100)
    read = 0

    def endless():
        nonlocal read
        yield b'["'
        while True:
            read += 1
            yield b"x" * 10

    ((_, error),) = array_items(endless(), "utf-8")
    assert "malformed JSON" in str(error) and read < 20


@given(st.lists(st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5)), st.integers(1, 9))
def test_any_array_is_read_as_json_reads_it(values, size):
    for data in (json.dumps(values).encode(), json.dumps(values, ensure_ascii=True, indent=1).encode()):
        assert [value for _, value in array_items(in_blocks(data, size), "utf-8")] == values


def csv_rows(tmp_path, text, name="a.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(rows_of(path, Piece(name)))


def test_csv_rows_begin_at_their_lines_and_broken_ones_are_told(tmp_path):
    found = csv_rows(tmp_path, 'prompt,label\n"甲\n乙",1\n\n"丙"丁,2\n戊,3\n己\n庚,"4\n')
    assert found[0] == (2, {"prompt": "甲\n乙", "label": "1"})
    assert found[2] == (6, {"prompt": "戊", "label": "3"})
    assert [number for number, _ in found] == [2, 5, 6, 7, 8]
    for place, message in ((1, "malformed CSV"), (3, "1 cells, but the first row names 2"), (4, "malformed CSV")):
        assert message in str(found[place][1]) and isinstance(found[place][1], ValueError)


def test_a_csv_row_with_a_broken_line_is_left_out_whole(tmp_path):
    found = csv_rows(tmp_path, "text\n好\n好\n好\n".encode() + b'"\xe7\x94\xb2\n\xff\nb"\nend\n')
    assert found[:3] == [(line, {"text": "好"}) for line in (2, 3, 4)] and found[4:] == [(8, {"text": "end"})]
    assert found[3][0] == 6 and "not UTF-8 text" in str(found[3][1])


def test_csv_cells_of_turns_and_labels(tmp_path):
    found = csv_rows(tmp_path, 'prompt,completion,label,history\n问,答,True,"[[""a"", ""b""]]"\n问,答,0,\n问,答,?,[x\n')
    assert found[0][1] == {"prompt": "问", "completion": "答", "label": True, "history": [["a", "b"]]}
    assert found[1][1] == {"prompt": "问", "completion": "答", "label": False}
    assert '"history": malformed JSON' in str(found[2][1])


def test_tsv_keeps_quotes_and_without_header_ranks_texts(tmp_path):
    assert csv_rows(tmp_path, 'text\tmore\n"甲\t1\n', "a.tsv") == [(2, {"text": '"甲', "more": "1"})]
    ((number, row),) = csv_rows(tmp_path, "好\t坏\n", "b.tsv")
    assert number == 1 and row["output"] == ["好", "坏"]

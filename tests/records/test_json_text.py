"""Arrays in blocks of any size: every item with its line, and where and why one is broken."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keju.records import json_text
from keju.records.json_text import BrokenArray, array_items


def in_blocks(data, size):
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_array_items_and_their_lines(size):
    text = '\n[\n  {"text": "甲\\n[,]"},\n\n 12,\n [1,\n 2], "乙", null\n]\n'
    found = list(array_items(in_blocks(text.encode(), size)))
    assert found == [(3, {"text": "甲\n[,]"}), (5, 12), (6, [1, 2]), (7, "乙"), (7, None)]


@pytest.mark.parametrize("size", [1, 5, 1000])
@pytest.mark.parametrize(
    ("text", "items", "line", "message"),
    [
        ('[{"a": 1},\n{"b": }, {"c": 3}]', 1, 2, "malformed JSON (Expecting value at column 7)"),
        ('[{"a": 1},\n{"b":\n1,\n"好" 2}]', 1, 4, "malformed JSON (Expecting ':' delimiter at column 5)"),
        ('[{"a": 1},\n{"b": 2}', 2, 2, "malformed JSON (Expecting ',' or ']' at column 9)"),
        ('[{"a": 1}\n"b"]', 1, 2, "malformed JSON (Expecting ',' or ']' at column 1)"),
        ("[,\n]", 0, 1, "malformed JSON (Expecting value at column 2)"),
        ('[]\n "x"', 0, 2, "malformed JSON (Text after the end of the array at column 2)"),
        ('[{}, {}, {"a": 1}, {"b": "}]', 3, 1, "malformed JSON (Unterminated string starting at at column 26)"),
        ("[" * 100_000, 0, 1, "malformed JSON (maximum recursion depth exceeded"),
        ("[\n1" + "0" * 5000 + "]", 0, 2, "malformed JSON (Exceeds the limit"),
        ("[", 0, 1, "malformed JSON (Expecting value at column 2)"),
    ],
)
def test_a_broken_array_is_told_with_its_place(text, items, line, message, size):
    found = []
    with pytest.raises(BrokenArray) as caught:
        found += array_items(in_blocks(text.encode(), max(size, len(text) // 50)))
    assert len(found) == items
    assert caught.value.line == line and str(caught.value).startswith(message)


ROWS = [{"text": f"第{n}", "turns": [{"role": "甲\n{"}, {"role": "乙"}]} for n in range(100)]
WAYS = {
    "indented": json.dumps(ROWS, ensure_ascii=False, indent=2),
    "one line": json.dumps(ROWS, ensure_ascii=False),
    "lines": "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n]",
}


@pytest.mark.parametrize("size", [50, 100_000])
@pytest.mark.parametrize(
    ("right", "wrong"), [('"第20"', '"第20'), ('"第20",', '"第20"'), ('"第20"', "'第20'"), ('"第20"', "")]
)
@pytest.mark.parametrize("way", WAYS)
def test_after_an_item_that_is_no_json_the_next_ones_are_read(way, right, wrong, size):
    text = WAYS[way].replace(right, wrong, 1)
    found = list(array_items(in_blocks(text.encode(), size)))
    assert [value for _, value in found if isinstance(value, dict)] == ROWS[:20] + ROWS[21:]
    ((line, error),) = [(line, value) for line, value in found if isinstance(value, ValueError)]
    item_begins = WAYS[way].index("第20") - len('{"text": "')
    assert line == WAYS[way].count("\n", 0, item_begins) + (0 if way == "indented" else 1)
    assert str(error).startswith("malformed JSON (")


@pytest.mark.parametrize("text", ['[{"a": 1}, {"a": 2},]', '[{"a": 1}\n{"a": 2}\n]', '[{"a": 1},\n{"a": 2},\n]'])
def test_a_comma_too_many_or_too_few_loses_nothing(text):
    assert [value for _, value in array_items([text.encode()])] == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_empty_array_and_wrong_bytes(size):
    assert list(array_items(in_blocks(b"\xef\xbb\xbf[ ]\n", size))) == []
    with pytest.raises(BrokenArray, match=r"^not UTF-8 text \(invalid continuation byte at byte 8\)$") as caught:
        list(array_items(in_blocks('["好",\n"'.encode()[:-1] + b"\xe5\xa5\x00", size)))
    assert caught.value.line == 2
    with pytest.raises(BrokenArray, match="not GB18030 text"):
        list(array_items(in_blocks('["好"'.encode("gb18030") + b"\xff", size), "gb18030"))


def test_an_item_that_never_ends_is_not_read_to_the_end(monkeypatch):
    monkeypatch.setattr(json_text, "MAX_ITEM", 100)
    read = 0

    def endless():
        nonlocal read
        yield b'["'
        while True:
            read += 1
            yield b"x" * 10

    with pytest.raises(BrokenArray, match="malformed JSON"):
        list(array_items(endless()))
    assert read < 20


@given(st.lists(st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5)), st.integers(1, 9))
def test_any_array_is_read_as_json_reads_it(values, size):
    for data in (json.dumps(values).encode(), json.dumps(values, ensure_ascii=True, indent=1).encode()):
        assert [value for _, value in array_items(in_blocks(data, size))] == values


@given(st.lists(st.sampled_from([*'[]{},:"\n 1', '"好"', "null"])).map("".join), st.integers(1, 9))
def test_blocks_change_neither_items_nor_errors(text, size):
    def outcome(blocks):
        found = []
        try:
            found += array_items(blocks)
        except BrokenArray as error:
            return found, error.line, str(error)
        return found

    data = ("[" + text).encode()
    assert outcome(in_blocks(data, size)) == outcome([data])
    try:
        expected = json.loads(data)
    except ValueError:
        assert isinstance(outcome([data]), tuple)
    else:
        assert [value for _, value in outcome([data])] == expected

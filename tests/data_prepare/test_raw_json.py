"""JSON lines and arrays, broken ones too, and fields that are no texts."""

from __future__ import annotations

import re

import pytest

from keju.data_prepare.corpus import BadRow, Piece
from keju.data_prepare.raw_json import checked_text, json_file, json_lines, text_field
from keju.errors import UserError


def written(folder, text: str | bytes) -> tuple:
    (folder / "a.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder, Piece("a.json")


def test_lines(tmp_path):
    good, broken, number, deep, last = json_lines(
        *written(tmp_path, '{"a": 1}\n\n{"a": \n5\n' + "[" * 9999 + '\n{"b": "乙"}')
    )
    assert good == ("a.json:1", {"a": 1}) and last == ("a.json:6", {"b": "乙"})
    assert broken == BadRow("a.json:3", "malformed JSON (Expecting value at column 7)")
    assert number == BadRow("a.json:4", "expected a JSON object, found int")
    assert deep.where == "a.json:5" and "malformed JSON" in deep.reason


def test_an_array_and_its_lines(tmp_path):
    text = '\ufeff\n[\n  {"a": 1},\n  {"a":\n 2}, 7\n]\n'
    assert list(json_file(*written(tmp_path, text))) == [
        ("a.json:3", {"a": 1}),
        ("a.json:4", {"a": 2}),
        BadRow("a.json:5", "expected a JSON object, found int"),
    ]
    assert list(json_file(*written(tmp_path, ' {"a": 1}'))) == [("a.json:1", {"a": 1})]
    assert list(json_file(*written(tmp_path, "[]"))) == []


@pytest.mark.parametrize("text", ['[{"a": "床前明月光"}]', '{"a": "床前明月光"}'])
def test_gbk(tmp_path, text):
    assert list(json_file(*written(tmp_path, text.encode("gbk")))) == [("a.json:1", {"a": "床前明月光"})]


@pytest.mark.parametrize(
    "text, message",
    [
        ('[{"a": 1},\n{"a" 2}]', r"a\.json:2: malformed JSON \(Expecting ':' delimiter"),
        ('[{"a": 1}', r"a\.json:1: malformed JSON \(Expecting ',' or '\]'"),
        ("{", r"a\.json: malformed JSON"),
        ("[" * 9999, r"a\.json:1: malformed JSON"),
        (b"[\xff]", r"a\.json:1: not UTF-8 text \(invalid start byte at byte 1\)"),
    ],
)
def test_broken_files(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        list(json_file(*written(tmp_path, text)))
    assert type(caught.value) is UserError


def test_text_fields():
    assert [text_field(row, "a") for row in ({"a": " 甲\n"}, {"a": None}, {})] == ["甲", "", ""]
    for value, message in ((5, '"a" is no text but int'), ("\ud800", "half of a surrogate pair"), ("a\0", "NUL")):
        with pytest.raises(ValueError, match=re.escape(message)):
            text_field({"a": value}, "a")
    with pytest.raises(ValueError, match="line 3 is no text but list"):
        checked_text([], "line 3")

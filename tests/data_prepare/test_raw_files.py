"""Lines as a stream in pieces, and files of another encoding named."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keju.data_prepare import raw_files
from keju.data_prepare.corpus import BadRow, Piece
from keju.data_prepare.raw_files import (
    check_encoding,
    count_lines,
    encoding_of,
    file_pieces,
    line_before,
    line_pieces,
    start_of_line,
    text_lines,
    whole_text,
)
from keju.records import opening


def lines_of(folder, data: bytes, piece: Piece | None = None):
    (folder / "a.txt").write_bytes(data)
    return list(text_lines(folder, piece or Piece("a.txt")))


def test_lines_end_at_line_feeds_alone(tmp_path):
    data = "\ufeff甲\r\n\n乙\u2028丙\x0b\x1c丁\r戊\n己".encode()
    expected = [("a.txt:1", "甲"), ("a.txt:2", ""), ("a.txt:3", "乙\u2028丙\x0b\x1c丁\r戊"), ("a.txt:4", "己")]
    assert lines_of(tmp_path, data) == expected


def test_a_piece_from_the_middle_knows_its_lines(tmp_path):
    assert lines_of(tmp_path, b"one\ntwo\nthree\nfour\n", Piece("a.txt", 4, 14, 2)) == [
        ("a.txt:2", "two"),
        ("a.txt:3", "three"),
    ]


def test_lines_that_cannot_be_used_are_named_and_the_rest_is_read(tmp_path):
    first, bad, zero, last = lines_of(tmp_path, "甲\n乙".encode() + b"\xff\n\x00\n" + "丁\n".encode())
    assert (first, last) == (("a.txt:1", "甲"), ("a.txt:4", "丁"))
    assert bad == BadRow("a.txt:2", "not UTF-8 text (invalid start byte at byte 3 of the line)")
    assert zero == BadRow("a.txt:3", "a NUL byte in the text")


def test_a_mark_inside_a_file_stays(tmp_path):
    assert lines_of(tmp_path, b"a\n\xef\xbb\xbfb\n")[1] == ("a.txt:2", "\ufeffb")


def test_a_line_beyond_the_limit_is_passed_over_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "MAX_LINE", 8)
    monkeypatch.setattr(opening, "BLOCK", 4)
    long, short, exact = lines_of(tmp_path, b"x" * 30 + b"\nshort\n1234567\n")
    assert isinstance(long, BadRow) and long.where == "a.txt:1"
    assert (short, exact) == (("a.txt:2", "short"), ("a.txt:3", "1234567"))
    assert list(text_lines(tmp_path, Piece("a.txt", 0, 31))) == [long]


@given(
    data=st.lists(st.sampled_from([b"\n", b"a", b"\r\n", "中".encode(), b"\xff", b"\x00"]), max_size=60),
    size=st.integers(1, 40),
)
@settings(deadline=None)
def test_pieces_together_are_the_file(tmp_path_factory, data, size):
    folder = tmp_path_factory.getbasetemp()
    whole = lines_of(folder, b"".join(data))
    pieces = line_pieces(folder / "a.txt", "a.txt", size)
    assert [line for piece in pieces for line in text_lines(folder, piece)] == whole
    assert count_lines(folder / "a.txt") == len(whole)
    assert all(start_of_line(folder / "a.txt", piece.first_line) == piece.start for piece in pieces)
    assert all(piece.end - piece.start >= size for piece in pieces[:-1])
    for piece in pieces:
        before = [line for line in b"".join(data)[: piece.start].split(b"\n") if line.strip()]
        assert line_before(folder / "a.txt", piece.start) == (before[-1].strip() if before else b"")


def test_lines_are_counted_over_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(raw_files, "BLOCK", 3)
    (tmp_path / "a.txt").write_bytes(b"ab\ncdefgh\n\n\nij")
    assert count_lines(tmp_path / "a.txt") == 5
    assert [start_of_line(tmp_path / "a.txt", number) for number in range(1, 8)] == [0, 3, 10, 11, 12, 14, 14]
    assert [(piece.start, piece.end, piece.first_line) for piece in line_pieces(tmp_path / "a.txt", "a.txt", 4)] == [
        (0, 10, 1),
        (10, 14, 3),
    ]
    assert [line_before(tmp_path / "a.txt", start) for start in (0, 3, 10, 12)] == [b"", b"ab", b"cdefgh", b"cdefgh"]


TEXT = "子曰：学而时习之，不亦说乎？\n有朋自远方来，不亦乐乎？\n"


@pytest.mark.parametrize("encoding", ["gbk", "gb18030"])
@pytest.mark.parametrize("times", [1, 5000])  # within the sample, and cut by it
def test_gbk_is_read_and_said(tmp_path, encoding, times, caplog):
    data = (TEXT * times).encode(encoding)
    (tmp_path / "a.txt").write_bytes(data + b"\xff\n")
    with caplog.at_level(logging.WARNING):
        (piece,) = file_pieces(tmp_path, [tmp_path / "a.txt"])
    assert caplog.messages == [f"{tmp_path}/a.txt: this is GBK (GB18030), not UTF-8, and is read as such"]
    *lines, broken = text_lines(tmp_path, piece)
    assert [text for _, text in lines] == TEXT.split("\n")[:-1] * times
    assert "not GB18030 text" in broken.reason
    assert lines_of(tmp_path, data, Piece("a.txt", len(TEXT) * 2 - 2, None, 3)) == lines[2:]


def test_utf16_is_named_with_the_way_to_convert_it(tmp_path):
    (tmp_path / "a b.txt").write_bytes(TEXT.encode("utf-16"))
    with pytest.raises(ValueError) as caught:
        check_encoding(tmp_path / "a b.txt")
    path = f"'{tmp_path}/a b.txt"
    assert str(caught.value) == (
        f"{tmp_path}/a b.txt: this is UTF-16, not UTF-8; convert it: iconv -f utf-16 -t utf-8 {path}' > {path}.utf8'"
    )


IN_OTHERS = {
    "big5": "請解釋這個成語的意思，謝謝。\n這個成語說的是古代的故事。\n",
    "cp1252": "What is a café?\nIt’s a “place” to drink coffee – à la Française.\n",
}


@pytest.mark.parametrize("encoding", IN_OTHERS)
@pytest.mark.parametrize("times", [1, 5000])
def test_what_gbk_would_make_nonsense_of_is_named(tmp_path, encoding, times):
    path = tmp_path / "a.txt"
    path.write_bytes((IN_OTHERS[encoding] * times).encode(encoding))
    with pytest.raises(ValueError, match=f"this is {encoding.upper()}, not UTF-8; convert it: iconv -f {encoding} "):
        check_encoding(path)


@pytest.mark.parametrize(
    "text", [TEXT, "画蛇添足\n守株待兔\n", "龘靐齉\n", "「你好」—— café\n", "１２３，ＡＢＣ\n", "ひらがな\n"]
)
def test_gbk_of_any_text_stays_gbk(tmp_path, text):
    (tmp_path / "a.txt").write_bytes(text.encode("gb18030"))
    assert encoding_of(tmp_path / "a.txt") == "gb18030"


UTF8 = {
    "a line that gb18030 would take": TEXT.encode() + b"\xe4\xbd\n",
    "half a character": TEXT.encode() + "朋".encode()[:2] + b"\n",
    "more than a sample": (TEXT * 5000).encode(),
    "a line of more than a sample": b"x" + ("朋" * 50_000).encode(),
    "neither": b"\xff\xfa\n",
    "ASCII": b"plain\n" * 9,
    "nothing": b"",
}


@pytest.mark.parametrize("name", UTF8)
def test_broken_utf8_is_not_taken_for_gbk(tmp_path, name):
    (tmp_path / "a.txt").write_bytes(UTF8[name])
    assert encoding_of(tmp_path / "a.txt") == "utf-8"


@pytest.mark.parametrize("shift", range(3))
def test_a_long_line_is_cut_within_a_character(tmp_path, shift):
    data = b"x" * shift + ("中" * 50_000).encode()  # which is GB18030 as well, whatever is cut off
    (tmp_path / "a.txt").write_bytes(data)
    assert encoding_of(tmp_path / "a.txt") == "utf-8"


def test_a_file_as_one_text(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_bytes("\ufeff甲\r\n乙\r".encode())
    assert whole_text(tmp_path / "a.txt") == "甲\n乙\r"
    monkeypatch.setattr(raw_files, "MAX_FILE", 11)
    assert "a text of more than 0 MiB" in str(whole_text(tmp_path / "a.txt"))


def test_empty_files_are_left_out_unless_all_are(tmp_path, caplog):
    for name, text in {"b.txt": "乙\n", "a.txt": "甲\n", "c.txt": ""}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        assert file_pieces(tmp_path, tmp_path.glob("*")) == [Piece("a.txt"), Piece("b.txt")]
    assert f"{tmp_path / 'c.txt'}: this file is empty" in caplog.text
    with pytest.raises(ValueError, match=r"c\.txt: this file is empty$"):
        file_pieces(tmp_path, [tmp_path / "c.txt"])
    (tmp_path / "b.txt").write_text("")
    with pytest.raises(ValueError, match=r"b\.txt: this file is empty, and so are all others"):
        file_pieces(tmp_path, [tmp_path / "c.txt", tmp_path / "b.txt"])

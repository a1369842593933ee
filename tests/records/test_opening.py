"""Compressed files that are damaged, or unpack to more than memory should hold."""

import gzip
import lzma
import tracemalloc

import pytest
import zstandard

from keju.records import json_text, opening
from keju.records.opening import numbered_lines
from keju.records.reading import iterate_records

MIB = 1 << 20
PACK = {"gz": gzip.compress, "xz": lzma.compress, "zst": zstandard.ZstdCompressor(write_checksum=True).compress}
LINES = b"".join(b'{"text": "%032d"}\n' % (number**7) for number in range(400))


def lines_of(path):
    return [raw for _, raw in numbered_lines(path)]


@pytest.mark.parametrize("packing", PACK)
def test_files_one_after_the_other_are_one(tmp_path, packing):
    path = tmp_path / f"a.jsonl.{packing}"
    path.write_bytes(PACK[packing](LINES) * 3)
    assert b"".join(lines_of(path)) == LINES * 3


def test_zeros_may_stand_between_streams_of_xz(tmp_path):
    path = tmp_path / "a.jsonl.xz"
    path.write_bytes((lzma.compress(LINES) + bytes(8)) * 2)
    assert b"".join(lines_of(path)) == LINES * 2


DAMAGES = {
    "cut": lambda data: data[: len(data) // 2],
    "cut in a second one": lambda data: data + data[:100],
    "something else": lambda data: LINES,
    "something else after it": lambda data: data + b"<html>not found</html>",
    "zeros": lambda data: bytes(len(data)),
    "a changed bit": lambda data: (
        data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :]
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("on_bad_line", ["error", "skip"])
def test_damage_is_one_line_whatever_is_skipped(tmp_path, packing, damage, on_bad_line):
    """How much is lost cannot be counted."""
    path = tmp_path / f"a.jsonl.{packing}"
    path.write_bytes(DAMAGES[damage](PACK[packing](LINES)))
    with pytest.raises(ValueError) as caught:
        list(iterate_records(path, on_bad_line=on_bad_line))
    message = str(caught.value)
    assert message.startswith(f"{path}:") and "\n" not in message
    if damage != "a changed bit" or on_bad_line == "skip":  # the line with it may be no record
        assert "the compressed file is cut off or damaged (" in message and message.endswith("make or copy it again")


def huge_line(path, size):
    """A line of `size` MiB between two short ones."""
    block = b"a" * MIB
    opened = {"zst": zstandard.open, "gz": gzip.open, "xz": lzma.open}[path.suffix[1:]]
    array = ".json." in path.name
    with opened(path, "wb") as file:
        file.write(b'[{"text": "1"},\n{"text": "' if array else b'{"text": "1"}\n{"text": "')
        for _ in range(size):
            file.write(block)
        file.write(b'"},\n{"text": "3"}\n]' if array else b'"}\n{"text": "3"}\n')


@pytest.mark.parametrize(("suffix", "packing"), [*(("jsonl", packing) for packing in PACK), ("json", "zst")])
def test_a_line_that_unpacks_to_too_much_costs_bounded_memory(tmp_path, monkeypatch, suffix, packing):
    monkeypatch.setattr(opening, "MAX_LINE", 2 * MIB)
    monkeypatch.setattr(opening, "INPUT", 64)  # for of 1 KiB zst makes 32 MiB
    monkeypatch.setattr(json_text, "MAX_ITEM", 2 * MIB)
    path = tmp_path / f"a.{suffix}.{packing}"
    huge_line(path, 40)
    assert path.stat().st_size < MIB
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=rf"a.{suffix}.{packing}:2: .* of more than 2 MiB") as caught:
            list(iterate_records(path))
        assert "\n" not in str(caught.value)
        skipped = []
        records = list(iterate_records(path, on_bad_line="skip", on_skipped=skipped.append))
        assert [record.text for record in records] == ["1", "3"]
        assert len(skipped) == 1 and "of more than 2 MiB" in skipped[0]
        assert tracemalloc.get_traced_memory()[1] < 30 * MIB
    finally:
        tracemalloc.stop()


def test_a_long_line_is_refused_before_its_end_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "MAX_LINE", 1000)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"a" * MIB)[:-20])  # the end is not there
    number, found = next(numbered_lines(path))
    assert number == 1 and isinstance(found, ValueError)


@pytest.mark.parametrize("packing", ["xz", "zst"])
def test_a_window_beyond_memory_is_named(tmp_path, packing):
    path = tmp_path / f"a.jsonl.{packing}"
    if packing == "xz":
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 29}]
        path.write_bytes(lzma.compress(LINES, filters=filters))
    else:
        settings = zstandard.ZstdCompressionParameters.from_level(1, window_log=30)
        with zstandard.open(path, "wb", cctx=zstandard.ZstdCompressor(compression_params=settings)) as file:
            file.write(LINES)
    with pytest.raises(ValueError, match=rf"a.jsonl.{packing}:1: it takes too much memory to decompress"):
        lines_of(path)

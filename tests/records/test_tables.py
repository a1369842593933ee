"""Cells of tables that unpack to more than memory should hold."""

import tracemalloc

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from keju.records import tables
from keju.records.reading import iterate_records
from keju.records.tables import table_rows

MIB = 1 << 20


@pytest.fixture(autouse=True)
def small_rows(monkeypatch):
    monkeypatch.setattr(tables, "MAX_LINE", MIB)


def written(path, texts, **options):
    table = pyarrow.table({"text": texts})
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path, compression="zstd", **options)
    else:
        with pyarrow.ipc.new_file(path, table.schema, options=pyarrow.ipc.IpcWriteOptions(compression="zstd")) as file:
            file.write_table(table)
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_row_beyond_the_limit_is_a_bad_one(tmp_path, suffix):
    path = written(tmp_path / f"a{suffix}", ["甲", "a" * 2 * MIB, *["乙"] * 10])
    with pytest.raises(ValueError, match=f"a{suffix}:2: a row of more than 1 MiB"):
        list(iterate_records(path))
    skipped = []
    records = list(iterate_records(path, on_bad_line="skip", on_skipped=skipped.append))
    assert [record.text for record in records] == ["甲", *["乙"] * 10] and len(skipped) == 1


def test_rows_of_one_entry_are_not_all_made_at_once(tmp_path):
    texts = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 300, pyarrow.int32()), ["b" * (MIB // 2)])
    path = written(tmp_path / "a.parquet", texts)
    assert path.stat().st_size < 10_000
    tracemalloc.start()
    try:
        assert [number for number, _ in table_rows(path)] == list(range(1, 301))
        assert tracemalloc.get_traced_memory()[1] < 5 * MIB
    finally:
        tracemalloc.stop()


def test_cells_of_a_group_that_is_too_large_are_not_read(tmp_path):
    path = written(tmp_path / "a.parquet", ["甲", "a" * 8 * MIB], use_dictionary=False)
    with pytest.raises(ValueError, match="a.parquet: row group 1 unpacks to 8 MiB in 2 rows; a row may have 1 MiB"):
        list(iterate_records(path, on_bad_line="skip"))


def test_entries_of_a_dictionary_do_not_count_for_a_row(tmp_path):
    """A column of many texts, each of which is small."""
    texts = pyarrow.array([f"{number:06}" * 1000 for number in range(400)]).dictionary_encode()
    path = written(tmp_path / "a.arrow", texts)
    assert len(list(iterate_records(path))) == 400


def test_bytes_that_are_no_text(tmp_path):
    offsets, data = pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"\xff\xfe")
    path = written(tmp_path / "a.parquet", pyarrow.Array.from_buffers(pyarrow.string(), 1, [None, offsets, data]))
    with pytest.raises(ValueError, match="a.parquet: damaged after row 0"):
        list(iterate_records(path))

"""Names that stand for compressed files and for sets of shards, and damaged compressed files."""

from __future__ import annotations

import gzip
import json
import random
import re
import subprocess
import sys

import pytest
import zstandard

from keju.records.reading import iterate_records, read_records
from keju.records.shards import record_files


def lines(first: int, count: int) -> bytes:
    return "".join(
        json.dumps({"text": f"第{number}行"}, ensure_ascii=False) + "\n" for number in range(first, first + count)
    ).encode()


def packed(data: bytes, name: str) -> bytes:
    if name.endswith(".zst"):
        half = len(data) // 2  # two frames, as `zstd -c a b > c` or an append leaves them
        return b"".join(zstandard.compress(part) for part in (data[:half], data[half:]))
    return gzip.compress(data) if name.endswith(".gz") else data


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst", "a.jsonl.gz", "a.json.zst", "a.txt.gz"])
def test_compressed_files_hold_the_same_records(tmp_path, name):
    (tmp_path / name).write_bytes(packed(lines(1, 50), name))
    records = read_records(tmp_path / name)
    if "txt" in name:
        assert json.loads(records[9].text) == {"text": "第10行"}
    else:
        assert [record.text for record in records] == [f"第{number}行" for number in range(1, 51)]
    assert records[9].where == f"{tmp_path / name}:10"


@pytest.mark.parametrize("ending", [".zst", ".gz"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "no archive", "cut to a few bytes"])
def test_a_damaged_compressed_file_is_named_with_its_line(tmp_path, ending, suffix, damage):
    data = bytearray(
        packed(b"".join(json.dumps({"text": f"{i * 7919 % 10007} {i}"}).encode() + b"\n" for i in range(5000)), ending)
    )
    if damage == "cut":
        data = data[:-20]
    elif damage == "flipped":
        for place in range(len(data) // 2, len(data) // 2 + 40):
            data[place] ^= 0x5A
    elif damage == "no archive":
        data = bytearray(b'{"text": "plain"}\n')
    else:
        data = data[:7]
    path = tmp_path / f"a{suffix}{ending}"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}(:\d+)?: ") as caught:
        read_records(path)
    assert "\n" not in str(caught.value)
    if damage.startswith("cut"):
        assert "cut off or damaged" in str(caught.value)


def shards(folder, count=3, stem="ranked_train", suffix=".jsonl.zst"):
    for number in range(1, count + 1):
        name = f"{stem}-{number:05}-of-{count:05}{suffix}"
        (folder / name).write_bytes(packed(lines(number * 10, 4), name))


@pytest.mark.parametrize("name", ["ranked_train", "ranked_train.jsonl", "ranked_train.jsonl.zst", "ranked_train-*"])
def test_a_name_stands_for_its_shards_in_order(tmp_path, name):
    shards(tmp_path)
    shards(tmp_path, stem="ranked_train-more")  # another set, with a longer name
    files = record_files(tmp_path / name)
    names = [f"ranked_train-{number:05}-of-00003.jsonl.zst" for number in (1, 2, 3)]
    if "*" not in name:
        assert [file.name for file in files] == names
        expected = [f"第{10 * shard + row}行" for shard in (1, 2, 3) for row in range(4)]
        records = list(iterate_records(tmp_path / name))
        assert [record.text for record in records] == expected
        assert records[5].where == f"{tmp_path / names[1]}:2"
    else:
        assert set(names) < {file.name for file in files}


def test_a_pattern_takes_what_is_there(tmp_path):
    shards(tmp_path)
    assert [file.name[13:18] for file in record_files(tmp_path / "ranked_train-0000[13]-of-*.zst")] == [
        "00001",
        "00003",
    ]
    with pytest.raises(ValueError, match="no file of records matches"):
        record_files(tmp_path / "sft-*")


def test_a_missing_shard_is_named(tmp_path):
    shards(tmp_path)
    (tmp_path / "ranked_train-00002-of-00003.jsonl.zst").unlink()
    with pytest.raises(ValueError, match=r"ranked_train-00002-of-00003\.jsonl\.zst: no such file, 1 of 3 shards"):
        read_records(tmp_path / "ranked_train.jsonl")


def test_two_things_of_one_name_are_not_guessed_between(tmp_path):
    shards(tmp_path)
    shards(tmp_path, count=2)
    with pytest.raises(ValueError, match="which one is meant of .*of-00002.jsonl.zst, .*of-00003.jsonl.zst"):
        record_files(tmp_path / "ranked_train")
    (tmp_path / "ranked_train.jsonl").write_bytes(lines(1, 1))
    assert record_files(tmp_path / "ranked_train.jsonl") == [tmp_path / "ranked_train.jsonl"]  # its very name


def test_the_plain_name_reads_the_compressed_file(tmp_path):
    (tmp_path / "a.jsonl.zst").write_bytes(packed(lines(1, 3), ".zst"))
    assert len(read_records(tmp_path / "a.jsonl")) == len(read_records(tmp_path / "a")) == 3


@pytest.mark.parametrize("kind", ["parquet", "arrow file", "arrow stream"])
def test_tables_are_read_row_by_row(tmp_path, kind):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist(
        [{"text": "甲", "label": None}, {"text": "乙", "label": None}, {"text": "", "label": None}]
    )
    path = tmp_path / f"a.{kind.split()[0]}"
    if kind == "parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        new = pyarrow.ipc.new_file if kind == "arrow file" else pyarrow.ipc.new_stream
        with new(str(path), table.schema) as writer:
            writer.write_table(table)
    records = read_records(path, on_bad_line="skip")
    assert [(record.text, record.where) for record in records] == [("甲", f"{path}:1"), ("乙", f"{path}:2")]
    assert records.skipped == [f'{path}:3: "text" is empty']
    path.write_bytes(path.read_bytes()[:-40] if kind != "arrow stream" else path.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: damaged"):
        read_records(path)


def test_streaming_takes_constant_memory(tmp_path):
    """Eight times the records, the same peak."""
    code = """
import sys
from pathlib import Path
from keju.records.reading import iterate_records
for _ in iterate_records(sys.argv[1]):
    pass
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""
    peaks = []
    for times in (1, 8):
        path = tmp_path / f"{times}.jsonl.zst"
        rows = (json.dumps({"text": random.Random(row).randbytes(1500).hex()}) for row in range(2000 * times))
        path.write_bytes(zstandard.compress("\n".join(rows).encode()))
        done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
    assert peaks[1] - peaks[0] < 8 * 1024, peaks  # in KiB; the larger file is 48 MB of text

"""Items in files, slices of several files together, and numbers drawn."""

from __future__ import annotations

import numpy as np
import pytest

from keju.data_prepare.corpus import Item
from keju.data_prepare.pipeline.hashing import bucket_of, mixed
from keju.data_prepare.pipeline.item_files import ENTRY, ItemFile, ItemsOfSlice, ItemWriter, line_of, places_of


def item(number: int) -> Item:
    answers = [{"answer": f"答{number}\n", "score": 1}]
    return Item(
        {"prompt": f"问{number}", "answers": answers}, f"f:{number}", f"g{number}", "源", "task", ("近", "远"), "x"
    )


def entries(*numbers: int, order: int = 0) -> np.ndarray:
    found = np.zeros(len(numbers), ENTRY)
    found["number"] = numbers
    found["order"] = [(number * 7 + order) % 10 for number in numbers]
    return found


def test_items_are_read_as_they_were_written(tmp_path):
    with ItemWriter(tmp_path / "items") as writer:
        writer.add_slice()
        writer.write(entries(0, 1), map(line_of, (item(0), item(1))))
        writer.write(entries(2), [line_of(item(2))])
        writer.add_slice()
        writer.add_slice()
        writer.write(entries(3), [line_of(item(9), item(3).row)])
    file = ItemFile(tmp_path / "items")
    assert [file[place] for place in range(3)] == [item(0), item(1), item(2)]
    assert file[3].row == item(3).row and file[3].group == "g9"
    assert [(part.start, part.stop) for part in map(file.slice, range(3))] == [(0, 3), (3, 3), (3, 4)]
    assert file.entries["number"].tolist() == [0, 1, 2, 3]


def test_a_file_without_items(tmp_path):
    with ItemWriter(tmp_path / "items") as writer:
        writer.add_slice()
    assert len(ItemFile(tmp_path / "items")) == 0
    assert len(ItemsOfSlice([ItemFile(tmp_path / "items")], 0, ["order"])) == 0


def test_a_file_is_whole_or_not_there(tmp_path):
    with pytest.raises(KeyboardInterrupt), ItemWriter(tmp_path / "items") as writer:
        writer.add_slice()
        writer.write(entries(0), [line_of(item(0))])
        raise KeyboardInterrupt
    assert not (tmp_path / "items").exists()


def test_a_slice_of_several_files_in_the_order_drawn(tmp_path):
    for name, numbers in (("one", (1, 2, 3)), ("two", (4, 5)), ("three", ())):
        with ItemWriter(tmp_path / name) as writer:
            writer.add_slice()
            writer.write(entries(99), [line_of(item(99))])
            writer.add_slice()
            writer.write(entries(*numbers), map(line_of, map(item, numbers)))
    files = [ItemFile(tmp_path / name) for name in ("one", "two", "three")]
    items = ItemsOfSlice(files, 1, ["order"])
    expected = sorted((1, 2, 3, 4, 5), key=lambda number: number * 7 % 10)
    assert [items.item(place) for place in range(len(items))] == list(map(item, expected))
    assert items.entries["number"].tolist() == expected
    assert [items.line(place) for place in range(len(items))] == list(map(line_of, map(item, expected)))


@pytest.mark.parametrize("count", [1, 4])
def test_places_of_numbers(count):
    numbers = np.array([3, 0, 3, 1, 0] if count == 4 else [0, 0], np.uint64)
    expected = [[place for place, number in enumerate(numbers) if number == one] for one in range(count)]
    assert [places.tolist() for places in places_of(numbers, count)] == expected
    assert [len(places) for places in places_of(numbers[:0], count)] == [0] * count


def test_numbers_are_those_of_splitmix64_and_evenly_spread():
    # The first outputs of the generator with the seed 0.
    golden = np.uint64(0x9E3779B97F4A7C15)
    assert [int(mixed(np.uint64(0), state)) for state in (np.uint64(0), golden)] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
    ]
    hashes = mixed(mixed(np.uint64(5), np.arange(60_000, dtype=np.uint64)), np.uint64(0))
    assert len(np.unique(hashes)) == len(hashes)
    for parts in (bucket_of(hashes, 6), hashes % np.uint64(6)):
        counts = np.bincount(parts.astype(np.int64), minlength=6)
        assert len(counts) == 6 and abs(counts - 10_000).max() < 400

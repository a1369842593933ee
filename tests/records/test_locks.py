"""One writer at a time, and what killed ones leave is cleared away without loss."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from keju.records.locks import clear_leftovers, only_writer
from keju.records.writing import whole_folder

WRITER = """
import sys
from pathlib import Path
from keju.records.locks import only_writer
from keju.records.writing import whole_folder

def own(folder):
    return [path for path in folder.iterdir() if path.name.startswith("mine")]

folder = Path(sys.argv[1])
print("begun", flush=True)
for number in range(10**9):
    with only_writer(folder, own=own), whole_folder(folder, own=own) as aside:
        for name in ("a", "b"):
            (aside / name).write_text(str(number))
"""


def own(folder):
    return [path for path in folder.iterdir() if path.name.startswith("mine")]


def test_a_second_writer_is_refused_and_destroys_nothing(tmp_path):
    with only_writer(tmp_path / "data"):
        second = only_writer(tmp_path / "data")
        with pytest.raises(ValueError, match=r"^output_dir: another process is writing to .*data now"), second:
            raise AssertionError
        with only_writer(tmp_path / "other"):
            pass
    with only_writer(tmp_path / "data"):
        pass
    assert os.listdir(tmp_path) == []


def test_what_killed_writers_left_goes_and_what_they_moved_away_comes_back(tmp_path):
    for name in (".data.0123abcd.part", ".data.0123abcd.old", ".data.mine", ".data2.0123abcd.part"):
        (tmp_path / name).mkdir()
    (tmp_path / ".data.0123abcd.old" / "mine.txt").write_text("years of work")
    (tmp_path / ".data.89abcdef.part").write_text("half a file")
    with only_writer(tmp_path / "data"):
        pass
    assert sorted(os.listdir(tmp_path)) == [".data.mine", ".data2.0123abcd.part", "data"]
    assert (tmp_path / "data" / "mine.txt").read_text() == "years of work"


def test_leftovers_of_every_file_and_folder_or_of_those_named(tmp_path):
    for name in (".step-1.0123abcd.part", ".step-2.0123abcd.old", ".steps.0123abcd.old", ".mine", ".step-1.part"):
        (tmp_path / name).mkdir()
    clear_leftovers(tmp_path, r"step-\d+")
    assert sorted(os.listdir(tmp_path)) == [".mine", ".step-1.part", ".steps.0123abcd.old", "step-2"]
    clear_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".mine", ".step-1.part", "step-2", "steps"]


def test_own_files_of_a_folder_that_was_replaced_are_carried_over(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / ".data.0123abcd.old").mkdir()
    (tmp_path / ".data.0123abcd.old" / "mine").mkdir()
    (tmp_path / ".data.0123abcd.old" / "mine" / "thesis").write_text("years of work")
    with only_writer(tmp_path / "data", own=own):
        pass
    assert (tmp_path / "data" / "mine" / "thesis").read_text() == "years of work"
    assert os.listdir(tmp_path) == ["data"]


def test_killed_at_any_moment_nothing_of_the_users_is_lost_or_hidden(tmp_path):
    folder = tmp_path / "data"
    (folder / "mine").mkdir(parents=True)
    (folder / "mine" / "deep").write_text("years of work")
    (folder / "mine.txt").write_text("mine")
    draw = random.Random(1)
    for _ in range(12):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE)
        assert writer.stdout.readline() == b"begun\n"
        time.sleep(draw.uniform(0, 0.03))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        assert (folder / "mine" / "deep").read_text() == "years of work"
        assert (folder / "mine.txt").read_text() == "mine"
        names = {path.name for path in folder.iterdir()} - {"mine", "mine.txt"}
        assert names in (set(), {"a", "b"}) and len({(folder / name).read_text() for name in names}) <= 1
    with only_writer(folder, own=own), whole_folder(folder, own=own) as aside:
        (aside / "a").write_text("last")
    assert os.listdir(tmp_path) == ["data"] and sorted(os.listdir(folder)) == ["a", "mine", "mine.txt"]


def test_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    writer = only_writer(tmp_path / "file" / "data")
    with pytest.raises(ValueError, match="^output_dir: nothing can be written"), writer:
        raise AssertionError

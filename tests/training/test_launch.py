from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from keju.encoding.array_file import DamagedFile
from keju.errors import UserError
from keju.models.layers import RMSNorm
from keju.rl.rewards import check_prefix_mask
from keju.training.launch import run_guarded
from keju.training.run_folder import RunFolder
from keju.trees.packing import pack


def raising(error):
    def main():
        raise error

    return main


def test_success_and_argparse_exits_pass():
    assert run_guarded(lambda: None) == 0
    assert run_guarded(raising(SystemExit(2))) == 2
    assert run_guarded(raising(SystemExit())) == 0


def test_a_mistake_in_the_data_is_one_line_and_exit_2(capsys):
    assert run_guarded(lambda: pack([100], 10)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")


def test_a_missing_file_is_a_mistake_wherever_it_is_opened(capsys):
    assert run_guarded(Path("nowhere.jsonl").read_text) == 2
    assert capsys.readouterr().err == "error: nowhere.jsonl: No such file or directory\n"


def test_a_package_of_an_extra_is_named_with_the_extra(capsys):
    assert run_guarded(raising(ModuleNotFoundError("No module named 'rouge_chinese'", name="rouge_chinese"))) == 2
    assert capsys.readouterr().err == ("error: the package rouge-chinese is not installed: pip install 'keju[eval]'\n")
    assert run_guarded(raising(ModuleNotFoundError("No module named 'keju.stage'", name="keju.stage"))) == 1


@pytest.mark.parametrize("name", ["a" * 300, "loop"])
def test_names_that_no_file_can_have_are_mistakes(tmp_path, capsys, name):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert run_guarded((tmp_path / name).read_bytes) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path}")


def test_debug_shows_the_traceback(capsys, monkeypatch):
    monkeypatch.setenv("KEJU_DEBUG", "1")
    assert run_guarded(lambda: pack([100], 10)) == 2
    assert "Traceback" in capsys.readouterr().err


def test_what_we_raise_as_the_users_mistake_names_its_flag(capsys):
    assert run_guarded(raising(UserError("must be above 0, got -1", option="beta"))) == 2
    assert run_guarded(raising(UserError('data.jsonl:3: "answers" is empty'))) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: --beta: must be above 0, got -1",
        'error: data.jsonl:3: "answers" is empty',
    ]


def broken_invariants():
    def unpack():
        first, second = (1, 2, 3)
        return first + second

    mask = torch.tensor([[True, False, True]])
    yield lambda: check_prefix_mask(mask)  # ours, raised on purpose
    yield lambda: RMSNorm(2)(torch.zeros(2, 3))
    yield unpack
    yield lambda: int("x")
    yield lambda: json.loads("{")


@pytest.mark.parametrize("function", broken_invariants())
def test_a_broken_invariant_is_a_crash(capsys, function):
    assert run_guarded(function) == 1
    assert "Traceback" in capsys.readouterr().err


class Damaged(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise DamagedFile("tokens.npy: bytes 0 to 9 are not what was written; delete tokens, and it is made anew")


def test_a_mistake_that_a_data_worker_found_is_the_same_line(capsys):
    loader = torch.utils.data.DataLoader(Damaged(), num_workers=1)
    assert run_guarded(lambda: list(loader)) == 2
    said = "tokens.npy: bytes 0 to 9 are not what was written; delete tokens, and it is made anew"
    assert capsys.readouterr().err == f"error: {said}\n"


def test_a_mistake_travels_between_processes():
    for error in (UserError("no such file", option="raw_dir"), UserError("x")):
        there = pickle.loads(pickle.dumps(error))
        assert (type(there), there.args, there.option, str(there)) == (UserError, error.args, error.option, str(error))


def error_of_a_crash(folder: Path, capsys) -> str:
    """What a run in `folder` says that crashes after its first step."""

    def main():
        run = RunFolder(folder, "sft", argv=[])
        run.log_metrics({"step": 1})
        raise ZeroDivisionError("division by zero")

    assert run_guarded(main) == 1
    return capsys.readouterr().err


def test_a_crash_keeps_its_traceback_in_the_log(tmp_path, capsys):
    err = error_of_a_crash(tmp_path, capsys)
    assert err == f"ZeroDivisionError: division by zero\nthe whole traceback is in {tmp_path / 'sft.log'}\n"
    assert "Traceback" in (tmp_path / "sft.log").read_text()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_log_that_cannot_be_written_is_not_named(tmp_path, capsys):
    (tmp_path / "sft.log").symlink_to("/dev/full")
    err = error_of_a_crash(tmp_path, capsys)
    assert "Traceback" in err and "the whole traceback is in" not in err


def test_an_explained_crash_says_so(tmp_path, capsys):
    def main():
        RunFolder(tmp_path, "sft", argv=[])
        raise MemoryError

    assert run_guarded(main) == 1
    assert capsys.readouterr().err.startswith("The machine ran out of memory.\n")


def test_a_crash_without_a_log_shows_its_traceback(capsys):
    assert run_guarded(raising(ZeroDivisionError("x"))) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_mistake_leaves_no_folder(tmp_path):
    def main():
        RunFolder(tmp_path / "run", "sft", argv=[])
        pack([100], 10)

    assert run_guarded(main) == 2
    assert not (tmp_path / "run").exists()


def test_another_rank_does_not_repeat_the_traceback_of_what_is_understood(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run_guarded(raising(MemoryError())) == 1
    err = capsys.readouterr().err
    assert err.startswith("[rank 1] The machine ran out of memory.") and "Traceback" not in err
    assert run_guarded(raising(ZeroDivisionError())) == 1
    assert "Traceback" in capsys.readouterr().err


SCRIPT = """
import sys, time
from keju.training.launch import run_stage
from keju.training.run_folder import RunFolder
def main():
    run = RunFolder(sys.argv[1], "sft")
    print("ready", flush=True)
    time.sleep(60)
run_stage(main)
"""


def test_a_signal_ends_with_130_and_no_traceback_in_the_face(tmp_path):
    script = tmp_path / "stage.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "run")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        while "ready" not in (line := process.stdout.readline()):
            assert line, process.stderr.read()
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Stopped from outside" in err and "Traceback" not in err


PRINTS = """
import sys
from rich.console import Console
from keju.training.launch import run_stage
def main():
    say = Console().print if sys.argv[1] == "rich" else print
    for number in range(200_000):
        say(number)
run_stage(main)
"""


@pytest.mark.parametrize("how", ["print", "rich"])
def test_who_stops_reading_ends_the_stage_without_a_word(tmp_path, how):
    """As `... | head -1`: exit code 141, which a shell gives for SIGPIPE."""
    script = tmp_path / "stage.py"
    script.write_text(PRINTS)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout.readline() == b"0\n"
        process.stdout.close()
        assert (process.wait(timeout=60), process.stderr.read()) == (141, b"")

"""Processes that do tasks: what they raise, and that they end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy
import psutil
import pytest

from keju.data_prepare.corpora import records
from keju.data_prepare.pipeline.plan import Plan, in_portions
from keju.data_prepare.pipeline.processes import Processes, _error
from keju.data_prepare.pipeline.worker import _told
from keju.errors import UserError
from keju.training.crash import explain

ROWS = '{"text": "学而时习之，不亦说乎？"}\n{"text": "有朋自远方来，不亦乐乎？"}\n'


@pytest.fixture
def plan(tmp_path) -> Plan:
    raw, work = tmp_path / "raw", tmp_path / "work"
    raw.mkdir()
    work.mkdir()
    for number in range(4):
        (raw / f"{number}.jsonl").write_text(ROWS, encoding="utf-8")
    portions = in_portions(raw, records.pieces(raw, 1), 1)
    plan = Plan("records", 1, str(raw), "", str(work), 0, {}, portions, num_buckets=2, num_train_shards=1)
    plan.save()
    return plan


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def test_tasks_are_done_and_rows_counted(plan):
    rows = []
    with Processes(plan.work, 2) as processes:
        assert len(children()) == 2
        assert sum(processes.run("read", range(len(plan.portions)), rows.append)) == len(plan.portions)
    assert sum(rows) == 8 and not children()
    assert len(list((Path(plan.work) / "done" / "read").iterdir())) == len(plan.portions)


def test_a_mistake_of_the_user_is_the_same_error_here(plan):
    (Path(plan.raw_dir) / "2.jsonl").write_text('{"text": 5}\n', encoding="utf-8")
    with Processes(plan.work, 2) as processes, pytest.raises(ValueError, match=r"2\.jsonl:1: ") as caught:
        list(processes.run("read", range(len(plan.portions)), lambda count: None))
    assert "\n" not in str(caught.value) and not children()


def test_a_mistake_keeps_its_option_and_other_errors_their_traceback():
    error = _error(_told(UserError("no such folder", option="raw_dir")))
    assert (type(error), error.in_flags()) == (UserError, "--raw_dir: no such folder")
    try:
        raise ValueError("a broken invariant")
    except ValueError as raised:
        error = _error(_told(raised))
    assert type(error) is RuntimeError and "Traceback" in str(error)


def test_an_error_of_the_system_is_the_same_error_here(plan):
    (Path(plan.raw_dir) / "1.jsonl").unlink()
    with Processes(plan.work, 1) as processes, pytest.raises(FileNotFoundError, match=r"1\.jsonl"):
        list(processes.run("read", range(len(plan.portions)), lambda count: None))


def test_a_bug_brings_its_traceback(plan):
    with Processes(plan.work, 1) as processes, pytest.raises(RuntimeError, match="in run_task(?s:.)*no_such"):
        list(processes.run("no_such", [0], lambda count: None))


def test_a_process_that_was_killed_is_said(plan):
    with Processes(plan.work, 1) as processes:
        for child in children():
            child.kill()
        with pytest.raises(ChildProcessError, match="give fewer --num_workers"):
            list(processes.run("read", [0], lambda count: None))
    assert not children()


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a running process is limited by prlimit")
def test_a_process_without_memory_is_said_and_the_next_one_goes_on(plan):
    import resource

    (Path(plan.raw_dir) / "2.jsonl").write_text(json.dumps({"text": "不" * (8 << 20)}) + "\n", encoding="utf-8")
    with Processes(plan.work, 1) as processes:
        assert sum(processes.run("read", [0], lambda count: None)) == 1
        (child,) = children()
        used = child.memory_info().vms
        resource.prlimit(child.pid, resource.RLIMIT_AS, (used + (8 << 20), used + (8 << 20)))
        with pytest.raises((MemoryError, ChildProcessError)) as caught:  # some libraries end the process
            list(processes.run("read", range(1, len(plan.portions)), lambda count: None))
    what, *remedies = explain(caught.value, {"output_dir": "runs/data", "num_workers": 2})
    assert "memory" in what and "num_workers" in " ".join([what, *remedies])
    assert remedies[-1].startswith("the same command again")
    assert not children()
    (Path(plan.raw_dir) / "2.jsonl").write_text(ROWS, encoding="utf-8")
    with Processes(plan.work, 1) as processes:
        assert sum(processes.run("read", range(len(plan.portions)), lambda count: None)) == len(plan.portions)


@pytest.mark.parametrize("error", [MemoryError(), numpy.exceptions.AxisError("a bug")])
def test_errors_travel(error):
    assert isinstance(_error(_told(error)), MemoryError if isinstance(error, MemoryError) else RuntimeError)


# Ctrl-C is ignored by what a shell runs in the background, this test, too.
PARENT = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from keju.data_prepare.pipeline.processes import Processes
with Processes(sys.argv[1], 2):
    print("there", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_they_end_with_the_process_that_began_them(plan, how):
    with subprocess.Popen([sys.executable, "-c", PARENT, plan.work], stdout=subprocess.PIPE) as parent:
        parent.stdout.readline()
        workers = psutil.Process(parent.pid).children()
        parent.send_signal(how)
        _, alive = psutil.wait_procs(workers, timeout=30)
        parent.kill()
        assert len(workers) == 2 and not alive

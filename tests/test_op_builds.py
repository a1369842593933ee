"""The lock of DeepSpeed's op builds: waits for those that build, not for those that were killed."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest
from torch.utils import cpp_extension
from torch.utils.file_baton import FileBaton

from keju.training.op_builds import BuildLock, is_open_somewhere, survive_killed_builds

HOLD = """
import sys, time
from {module} import {name}
baton = {name}(sys.argv[1])
assert baton.try_acquire()
print("held", flush=True)
sys.stdin.read()
baton.release()
"""
HOLDERS = {
    "of torch": ("torch.utils.file_baton", "FileBaton"),
    "of Keju": ("keju.training.op_builds", "BuildLock"),
}


@pytest.fixture(params=HOLDERS)
def holder(request, tmp_path):
    """Another process that has the lock, until its stdin is closed."""
    module, name = HOLDERS[request.param]
    script = HOLD.format(module=module, name=name)
    command = [sys.executable, "-c", script, str(tmp_path / "lock")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    with process:
        yield process
        process.kill()


def test_lock_of_a_killed_process_is_removed(holder, tmp_path, caplog):
    path = tmp_path / "lock"
    holder.kill()
    holder.wait()
    assert path.exists() and not is_open_somewhere(str(path))
    assert not FileBaton(str(path)).try_acquire()  # torch would wait for ever
    lock = BuildLock(str(path))
    assert lock.try_acquire() and path.exists()
    assert "left behind" in caplog.text
    assert not BuildLock(str(path)).try_acquire()
    lock.release()
    assert not path.exists()


def test_lock_of_a_process_that_builds_is_waited_for(holder, tmp_path):
    got = []

    def take() -> None:
        lock = BuildLock(str(tmp_path / "lock"))
        if lock.try_acquire():
            lock.release()
        else:
            lock.wait()
        got.append(lock)

    thread = threading.Thread(target=take)
    thread.start()
    time.sleep(0.5)
    assert not got
    holder.stdin.close()
    thread.join(timeout=30)
    assert got and not (tmp_path / "lock").exists()


def test_extensions_take_it(monkeypatch):
    monkeypatch.setattr(cpp_extension, "FileBaton", FileBaton)
    survive_killed_builds()
    assert cpp_extension.FileBaton is BuildLock

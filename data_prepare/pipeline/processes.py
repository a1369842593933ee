"""Processes of this machine that do the tasks of a plan; see `worker.py` for what they are told and say."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

from keju.errors import UserError

POLL_SECONDS = 0.2
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"), "1")

Advance = Callable[[int], None]


class Processes:
    """`count` of them, that do tasks until the block ends."""

    def __init__(self, work: str, count: int) -> None:
        self._all = [_Process(work) for _ in range(count)]
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        for process in self._all:
            self._idle.put(process)
        self._threads = ThreadPoolExecutor(count)  # each waits for one process

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *error) -> None:
        for process in self._all:
            process.end()
        self._threads.shutdown(cancel_futures=True)
        for process in self._all:
            process.close()

    def run(self, stage: str, numbers: Iterable[int], advance: Advance) -> Iterator[int]:
        """Does these tasks of a stage; yields from time to time how many have ended meanwhile.

        advance: called from several threads. Raises what a task raised: UserError for a mistake of the user, OSError,
        MemoryError, else RuntimeError with its traceback; ChildProcessError where a process was killed.
        """
        running = {self._threads.submit(self._run, stage, number, advance) for number in numbers}
        while running:
            done, running = wait(running, timeout=POLL_SECONDS, return_when="FIRST_COMPLETED")
            for one in done:
                one.result()
            yield len(done)

    def _run(self, stage: str, number: int, advance: Advance) -> None:
        process = self._idle.get()
        try:
            process.run(stage, number, advance)
        finally:
            self._idle.put(process)


class _Process:
    def __init__(self, work: str) -> None:
        command = [sys.executable, "-m", "keju.data_prepare.pipeline.worker", work]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "encoding": "utf-8"}
        self._process = subprocess.Popen(command, env=os.environ | ONE_THREAD, **pipes)

    def run(self, stage: str, number: int, advance: Advance) -> None:
        with contextlib.suppress(BrokenPipeError):  # noticed below
            print(json.dumps([stage, number]), file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            said = json.loads(line)
            if "ended" not in said:
                advance(said["rows"])
            elif said["ended"] is None:
                return
            else:
                raise _error(said["ended"])
        raise ChildProcessError("a process of the pipeline was killed (out of memory?); give fewer --num_workers")

    def end(self) -> None:
        self._process.terminate()
        self._process.wait()

    def close(self) -> None:
        self._process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()


def _error(told: dict[str, Any]) -> Exception:
    if "mistake" in told:
        return UserError(told["mistake"], option=told["option"])
    if "system" in told:
        return OSError(*told["system"])
    if "memory" in told:
        return MemoryError(told["memory"])
    return RuntimeError(f"in a process of the pipeline:\n{told['traceback']}")

"""Work that other processes do, with results in the order of the work and a bound on what is in memory."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

Item, Result = TypeVar("Item"), TypeVar("Result")

HELP_WHILE_THEY_START = True  # this process does what there is to do until another one is there


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], num_workers: int, *, ahead: int = 2
) -> Iterator[Result]:
    """`function` of each item, by `num_workers` fresh processes (1: by this one).

    At most `ahead * num_workers` items are read ahead of the result that is handed on. The processes end with the
    iteration, however it ends, and also when this process is killed: their pipe is closed then.
    Raises ChildProcessError where one of them is killed, RuntimeError with its traceback for an error in `function`.
    """
    if num_workers <= 1:
        yield from map(function, items)
        return
    with _Workers(function, num_workers) as workers:
        idle: list[Connection] = []
        busy: dict[Connection, int] = {}
        done: dict[int, Result] = {}
        numbered = enumerate(items)
        next_out, exhausted = 0, False
        while True:
            while next_out in done:
                yield done.pop(next_out)
                next_out += 1
            idle += workers.started(wait_for_one=not HELP_WHILE_THEY_START)
            while idle and not exhausted and len(busy) + len(done) < ahead * num_workers:
                number, item = next(numbered, (-1, None))
                if exhausted := number < 0:
                    break
                connection = idle.pop()
                with contextlib.suppress(BrokenPipeError):  # noticed below, where it is read from
                    connection.send(item)
                busy[connection] = number
            if not busy and not idle:  # nobody has started
                number, item = next(numbered, (-1, None))
                if exhausted := number < 0:
                    return
                done[number] = _checked(_answer(function, item))
            elif not busy:  # nor anything done: the items are exhausted
                return
            for connection in wait(list(busy), timeout=0.1 if workers.are_starting else None) if busy else ():
                done[busy.pop(connection)] = _received(connection)
                idle.append(connection)


def _received(connection: Connection) -> Any:
    try:
        return _checked(connection.recv())
    except (EOFError, ConnectionResetError) as error:
        raise ChildProcessError(
            "a process that encodes records was killed (out of memory?); give fewer --num_workers"
        ) from error


def _checked(answer: tuple[bool, Any]) -> Any:
    failed, result = answer
    if failed:
        raise RuntimeError(f"in a process that encodes records:\n{result}")
    return result


class _Workers:
    """Processes that start in the background, since the first takes seconds to import what they all need."""

    def __init__(self, function: Callable, count: int) -> None:
        self._function, self._count = function, count
        self._new: queue.SimpleQueue[Connection | BaseException] = queue.SimpleQueue()
        self._all: list[tuple[Connection, BaseProcess]] = []
        self._num_handed_out, self._is_ending = 0, False
        self._thread = threading.Thread(target=self._start, daemon=True)

    @property
    def are_starting(self) -> bool:
        return self._num_handed_out < self._count

    def started(self, *, wait_for_one: bool) -> list[Connection]:
        """The pipes of those that are new."""
        found: list[Connection] = []
        with contextlib.suppress(queue.Empty):
            while self._num_handed_out < self._count:
                new = self._new.get(block=wait_for_one and not self._num_handed_out)
                if isinstance(new, BaseException):
                    raise new
                found.append(new)
                self._num_handed_out += 1
        return found

    def _start(self) -> None:
        # A fork of this process would inherit locks that threads of torch and of the tokenizers hold. The fork server
        # has no threads, and imports once what all workers need.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["keju.encoding.store_build"])
        try:
            for _ in range(self._count):
                if self._is_ending:
                    return
                own, other = context.Pipe()
                process = context.Process(target=_serve, args=(other, self._function), daemon=True)
                with _environment(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false"):
                    process.start()
                other.close()
                self._all.append((own, process))
                self._new.put(own)
        except BaseException as error:
            self._new.put(error)

    def __enter__(self) -> _Workers:
        self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._is_ending = True
        self._thread.join()
        for connection, process in self._all:
            connection.close()
            process.terminate()
        for _, process in self._all:
            process.join()


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(connection: Connection, function: Callable) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits for us
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            connection.send(_answer(function, connection.recv()))


def _answer(function: Callable, item: Any) -> tuple[bool, Any]:
    """-> whether it failed, the result or the traceback."""
    try:
        return False, function(item)
    except Exception:
        return True, traceback.format_exc()

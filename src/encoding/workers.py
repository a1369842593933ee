"""Work that other processes do, with results in the order of the work and a bound on what is in memory."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

Item, Result = TypeVar("Item"), TypeVar("Result")


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
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(_worker(function)) for _ in range(num_workers)]
        busy: dict[Connection, int] = {}
        done: dict[int, Result] = {}
        numbered = enumerate(items)
        next_out, exhausted = 0, False
        while True:
            while next_out in done:
                yield done.pop(next_out)
                next_out += 1
            while idle and not exhausted and len(busy) + len(done) < ahead * num_workers:
                number, item = next(numbered, (-1, None))
                if exhausted := number < 0:
                    break
                connection = idle.pop()
                with contextlib.suppress(BrokenPipeError):  # noticed below, where it is read from
                    connection.send(item)
                busy[connection] = number
            if not busy:  # nor anything done: the items are exhausted
                return
            for connection in wait(list(busy)):
                done[busy.pop(connection)] = _received(connection)
                idle.append(connection)


def _received(connection: Connection) -> Any:
    try:
        failed, result = connection.recv()
    except (EOFError, ConnectionResetError) as error:
        raise ChildProcessError(
            "a process that encodes records was killed (out of memory?); give fewer --num_workers"
        ) from error
    if failed:
        raise RuntimeError(f"in a process that encodes records:\n{result}")
    return result


@contextlib.contextmanager
def _worker(function: Callable) -> Iterator[Connection]:
    # A fork of this process would inherit locks that threads of torch and of the tokenizers hold. The fork server has
    # no threads, and imports once what all workers need.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["keju.encoding.store_build"])
    own, other = context.Pipe()
    process = context.Process(target=_serve, args=(other, function), daemon=True)
    with _environment(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false"):
        process.start()
    other.close()
    try:
        yield own
    finally:
        own.close()
        process.terminate()
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
            item = connection.recv()
            try:
                answer = (False, function(item))
            except Exception:
                answer = (True, traceback.format_exc())
            connection.send(answer)

"""Work that other processes do, with results in the order of the work and a bound on what is in memory."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
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

    function: it and all that it holds are of other modules than the main one, and need no model family of ours.
    At most `ahead * num_workers` items are read ahead of the result that is handed on. The processes end with the
    iteration, however it ends, and also when this process is killed: their pipe is closed then.
    Raises ChildProcessError where one of them is killed, MemoryError where it has no memory left, and RuntimeError with
    its traceback for another error in `function`.
    """
    if num_workers <= 1:
        yield from map(function, items)
        return
    with _workers(function, num_workers) as starting:
        idle: list[Connection] = []
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
            helps = HELP_WHILE_THEY_START and not busy and not idle  # nobody has started
            if helps and not exhausted:
                number, item = next(numbered, (-1, None))
                if not (exhausted := number < 0):
                    done[number] = _checked(_answer(function, item))
            if exhausted and not busy and not done:
                return
            for connection in wait([*starting, *busy], timeout=0 if helps else None):
                result = _received(connection)
                if connection in busy:
                    done[busy.pop(connection)] = result
                else:
                    starting.remove(connection)
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
    if isinstance(result, MemoryError):
        raise result
    if failed:
        raise RuntimeError(f"in a process that encodes records:\n{result}")
    return result


@contextlib.contextmanager
def _workers(function: Callable, count: int) -> Iterator[list[Connection]]:
    """Pipes to processes that start in the background; each sends an answer of its own accord when it is there.

    A fork of this process would inherit locks that threads of torch and of the tokenizers hold; the processes that
    multiprocessing spawns each import the main module and all that a stage needs, for seconds. So a fresh process,
    the host, imports once what the function needs, and forks the others, before it has threads.
    """
    pipes = [multiprocessing.Pipe() for _ in range(1 + count)]  # the first is that of the host
    theirs = [other.fileno() for _, other in pipes]
    code = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        "import keju; keju.leave_out_families()\n"  # no tokenizer needs them
        f"from {__name__} import host; host(*map(int, sys.argv[1:]))"
    )
    host = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, theirs)],
        pass_fds=theirs,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        start_new_session=True,  # Ctrl-C is for the process that waits
    )
    try:
        for _, other in pipes:
            other.close()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # noticed by those who read from the others
            pipes[0][0].send(function)
        yield [own for own, _ in pipes[1:]]
    finally:
        for own, _ in pipes:
            own.close()
        host.wait()


def host(own: int, *descriptors: int) -> None:
    """Forks a process for each pipe, and ends them once `own`, a pipe that brings the function, is closed."""
    connection = Connection(own)
    function = _answer(Connection.recv, connection)
    pipes = [Connection(descriptor) for descriptor in descriptors]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_serve, args=(pipe, pipes, function), daemon=True) for pipe in pipes]
    for process in processes:
        process.start()
    for pipe in pipes:
        pipe.close()
    wait([connection])  # then this process ends, and its daemons with it


def _serve(own: Connection, pipes: list[Connection], function: tuple[bool, Any]) -> None:
    for pipe in pipes:
        if pipe is not own:  # its end would not be noticed as long as anybody has it open
            pipe.close()
    failed, loaded = function
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        own.send((failed, loaded if failed else None))
        while True:
            own.send(_answer(loaded, own.recv()))


def _answer(function: Callable, item: Any) -> tuple[bool, Any]:
    """-> whether it failed, the result or the traceback (where memory was short, the error)."""
    try:
        return False, function(item)
    except MemoryError:
        return True, MemoryError("a process that encodes records has no memory left")
    except Exception:
        return True, traceback.format_exc()

"""A chat template is text from outside, and a program: it is stopped where no conversation needs so much.

Jinja's sandbox keeps a template away from files and from long ranges, but not from nested loops, and not from texts
that double themselves. Time is that of the processor, so that a slow or a sleeping machine stops nothing.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SECONDS = 20.0  # of processor time for one conversation; 1,500 turns take a few hundredths of one
MEMORY = 2 << 30  # bytes beyond what the process has
TEXT = 64 << 20  # characters beyond a multiple of what the conversation holds
TIMES = 16
FRESH = 0.05


class OutOfTime(Exception):
    """Raised inside of the template."""


@contextmanager
def bounded() -> Iterator[None]:
    """What runs inside raises OutOfTime after SECONDS, and MemoryError beyond MEMORY, where the system can do that.

    Signals reach the main thread only; records are encoded there, in the processes that help as well.
    """
    with _memory_limit(), _time_limit():
        yield


_handled: set[int] = set()  # processes that have the handler


@contextmanager
def _time_limit() -> Iterator[None]:
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    if os.getpid() not in _handled:  # setting a handler takes longer than many a rendering; this one stays
        signal.signal(signal.SIGVTALRM, _stop)
        _handled.add(os.getpid())
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _stop(*_) -> None:
    raise OutOfTime


_used = (-1.0, 0)  # when it was read, bytes of this process


def _used_memory() -> int:
    """Read again after FRESH seconds: many a conversation is rendered in less time than it takes to read it."""
    global _used
    now = time.monotonic()
    if now - _used[0] > FRESH:
        pages = int(Path("/proc/self/statm").read_bytes().split(maxsplit=1)[0])
        _used = (now, pages * os.sysconf("SC_PAGE_SIZE"))
    return _used[1]


@contextmanager
def _memory_limit() -> Iterator[None]:
    try:
        import resource

        used = _used_memory()
    except (ImportError, OSError):  # not Linux
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = used + MEMORY
    if (soft != resource.RLIM_INFINITY and soft <= wanted) or (hard != resource.RLIM_INFINITY and hard < wanted):
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

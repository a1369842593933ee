"""A process that does tasks of a plan: python -m keju.data_prepare.pipeline.worker WORK_FOLDER

Tasks come as lines of its input, [stage, number]. To its output go {"rows": count} from time to time, and for each task
{"ended": what it raised, or null}; whatever else is printed goes to standard error. It imports what the stages need and
nothing more, so that it begins at once. It ends when its input does, also when the process that writes it was killed.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from typing import Any, TextIO

from keju.data_prepare.pipeline.engine import run_task
from keju.data_prepare.pipeline.plan import Plan
from keju.errors import UserError

REPORT_SECONDS = 0.2


def main(work: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits for us
    replies = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    tasks: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
    threading.Thread(target=_read_tasks, args=(tasks,), daemon=True).start()
    plan, rows = Plan.load(work), _Rows(replies)
    while True:
        stage, number = tasks.get()
        raised = None
        try:
            run_task(plan, stage, number, rows.advance)
        except Exception as error:
            raised = _told(error)
        rows.report()
        _say(replies, {"ended": raised})


def _read_tasks(tasks: queue.SimpleQueue[tuple[str, int]]) -> None:
    for line in sys.stdin:
        tasks.put(tuple(json.loads(line)))
    os._exit(0)


def _told(error: Exception) -> dict[str, Any]:
    """What `processes.py` makes the same error of."""
    if isinstance(error, UserError):
        return {"mistake": error.args[0], "option": error.option}
    if isinstance(error, OSError) and error.errno:
        return {"system": [error.errno, error.strerror, error.filename and str(error.filename)]}
    if isinstance(error, MemoryError):
        return {"memory": "a process of the pipeline has no memory left"}
    return {"traceback": "".join(traceback.format_exception(error))}


class _Rows:
    """Counts rows and says how many, but not more often than anybody looks."""

    def __init__(self, replies: TextIO) -> None:
        self._replies = replies
        self._count, self._next = 0, 0.0

    def advance(self, count: int) -> None:
        self._count += count
        if time.monotonic() >= self._next:
            self.report()

    def report(self) -> None:
        _say(self._replies, {"rows": self._count})
        self._count, self._next = 0, time.monotonic() + REPORT_SECONDS


def _say(replies: TextIO, reply: dict[str, Any]) -> None:
    try:
        print(json.dumps(reply), file=replies)
    except BrokenPipeError:  # nobody is left to hear it
        os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])

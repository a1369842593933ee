"""Runs the stages: their tasks in processes of this machine, or through datatrove on others; what was done stays done.

A task writes its files whole, then a mark with its figures. A run that was interrupted finds the marks and does what is
missing.
"""

from __future__ import annotations

import functools
import importlib
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from keju.data_prepare.pipeline import stages
from keju.data_prepare.pipeline.plan import Plan
from keju.data_prepare.pipeline.processes import Advance, Processes
from keju.records.writing import write_json

STAGES = {  # in their order, and what a progress bar calls them
    "read": "reading and cleaning",
    "match": "looking for duplicates",
    "decide": "choosing what stays",
    "deal": "leaving out the others",
    "rank": "near wrong answers",
    "write": "far wrong answers, writing",
    "check": "comparing the splits",
}
NEEDS_FIGURES = {"decide": ("read",), "deal": ("decide",)}  # of earlier stages


class Bar(Protocol):
    def advance(self, n: int, **shown: Any) -> None: ...


MakeBar = Callable[[int, str], AbstractContextManager[Bar]]  # (number of tasks, title)
Run = Callable[[str, Iterable[int], Advance], Iterator[int]]  # tasks of a stage; yields how many have ended meanwhile


def num_tasks(plan: Plan, stage: str) -> int:
    if stage in ("read", "deal"):
        return len(plan.portions)
    if stage == "write":
        return len(plan.parts)
    return 1 if stage == "decide" else plan.num_buckets


def run_task(plan: Plan, stage: str, number: int, advance: Advance) -> None:
    """Does a task unless it is done. advance: told of rows."""
    mark = _mark(plan, stage, number)
    if not mark.exists():
        for folder in stages.FOLDERS:
            (Path(plan.work) / folder).mkdir(parents=True, exist_ok=True)
        more = {}
        if stage in NEEDS_FIGURES:
            more["before"] = {name: figures(plan, name) for name in NEEDS_FIGURES[stage]}
        write_json(mark, getattr(stages, stage)(plan, number, advance, **more))


def figures(plan: Plan, stage: str) -> list[dict[str, Any]]:
    """What the tasks of a finished stage have counted."""
    marks = (_mark(plan, stage, number) for number in range(num_tasks(plan, stage)))
    return [json.loads(mark.read_text(encoding="utf-8")) for mark in marks]


def is_done(plan: Plan) -> bool:
    *_, last = STAGES
    return all(_mark(plan, last, number).exists() for number in range(num_tasks(plan, last)))


def run_here(plan: Plan, num_workers: int, make_bar: MakeBar) -> None:
    """All stages in processes of this machine; where one is enough, in this one. Raises what a task raises; see
    `Processes.run`."""
    num_workers = min(num_workers, len(plan.portions))
    if num_workers == 1:
        _run_stages(plan, make_bar, functools.partial(_one_after_the_other, plan))
        return
    with Processes(plan.work, num_workers) as processes:
        _run_stages(plan, make_bar, processes.run)


def _run_stages(plan: Plan, make_bar: MakeBar, run: Run) -> None:
    for stage, title in STAGES.items():
        total = num_tasks(plan, stage)
        missing = [number for number in range(total) if not _mark(plan, stage, number).exists()]
        if not missing:
            continue
        rows, begun = _Rows(), time.monotonic()
        with make_bar(total, title) as bar:
            bar.advance(total - len(missing))
            for ended in run(stage, missing, rows.advance):
                speed = round(rows.count / (time.monotonic() - begun))
                bar.advance(ended, **({"rows/s": speed} if speed else {}))


class _Rows:
    def __init__(self) -> None:
        self.count = 0
        self._lock = threading.Lock()

    def advance(self, count: int) -> None:
        with self._lock:
            self.count += count


def _one_after_the_other(plan: Plan, stage: str, numbers: Iterable[int], advance: Advance) -> Iterator[int]:
    for number in numbers:
        run_task(plan, stage, number, advance)
        yield 1


def _mark(plan: Plan, stage: str, number: int) -> Path:
    return Path(plan.work) / "done" / stage / f"{number:06}.json"


def run_with_datatrove(plan: Plan, executor: str, settings: dict[str, Any]) -> None:
    """All stages through an executor of datatrove: "local", "slurm" or "ray".

    settings: keywords of the executor's class. The work folder must be seen by all machines. On Slurm this returns when
    the jobs have been submitted.
    """
    module = importlib.import_module(f"datatrove.executor.{executor}")
    make = getattr(module, f"{executor.capitalize()}PipelineExecutor")
    last = None
    for stage in STAGES:
        step = functools.partial(_datatrove_step, plan.work, stage)
        logs = str(Path(plan.work) / "datatrove" / stage)
        last = make(pipeline=[step], tasks=num_tasks(plan, stage), logging_dir=logs, depends=last, **settings)
    last.run()


def _datatrove_step(work: str, stage: str, data, rank: int, world_size: int) -> None:
    run_task(Plan.load(work), stage, rank, lambda count: None)

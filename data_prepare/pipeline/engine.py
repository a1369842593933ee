"""Runs the stages: their tasks in processes of this machine, or through datatrove on others; what was done stays done.

A task writes its files whole, then a mark with its figures. A run that was interrupted finds the marks and does what is
missing.
"""

from __future__ import annotations

import functools
import importlib
import json
import multiprocessing
import multiprocessing.connection
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from keju.data_prepare.pipeline import stages
from keju.data_prepare.pipeline.plan import Plan
from keju.records.mistakes import is_raised_by_us
from keju.records.writing import write_json

STAGES = ("read", "match", "decide", "deal", "rank", "write", "check")
NEEDS_FIGURES = {"decide": ("read",), "deal": ("decide",)}  # of earlier stages
POLL_SECONDS = 0.2

_rows = None  # in a worker: the counter that all of them share


class Bar(Protocol):
    def advance(self, n: int, **shown: Any) -> None: ...


Task = tuple[str, str, int]  # work folder, stage, number
MakeBar = Callable[[int, str], AbstractContextManager[Bar]]  # (number of tasks, title)


def num_tasks(plan: Plan, stage: str) -> int:
    if stage in ("read", "deal"):
        return len(plan.portions)
    if stage == "write":
        return len(plan.shards)
    return 1 if stage == "decide" else plan.num_buckets


@dataclass(frozen=True)
class Mistake:
    """An error of the user, as one line: tracebacks do not come from one process to another."""

    line: str


Run = Callable[[list[Task]], Iterator[list[Mistake | None]]]


def run_task_or_say(work: str, stage: str, number: int) -> Mistake | None:
    try:
        run_task(work, stage, number)
    except ValueError as error:
        if not is_raised_by_us(error):
            raise
        return Mistake(str(error))
    return None


def run_task(work: str, stage: str, number: int) -> None:
    """Does a task unless it is done."""
    plan = Plan.load(work)
    mark = _mark(plan, stage, number)
    if not mark.exists():
        for folder in stages.FOLDERS:
            (Path(work) / folder).mkdir(parents=True, exist_ok=True)
        more = {}
        if stage in NEEDS_FIGURES:
            more["before"] = {name: figures(plan, name) for name in NEEDS_FIGURES[stage]}
        write_json(mark, getattr(stages, stage)(plan, number, _advance, **more))


def figures(plan: Plan, stage: str) -> list[dict[str, Any]]:
    """What the tasks of a finished stage have counted."""
    marks = (_mark(plan, stage, number) for number in range(num_tasks(plan, stage)))
    return [json.loads(mark.read_text(encoding="utf-8")) for mark in marks]


def is_done(plan: Plan) -> bool:
    return all(_mark(plan, STAGES[-1], number).exists() for number in range(num_tasks(plan, STAGES[-1])))


def run_here(plan: Plan, num_workers: int, make_bar: MakeBar) -> None:
    """All stages in processes of this machine; where one is enough, in this one. The error of a task is raised here,
    after those that run beside it have ended."""
    num_workers = min(num_workers, max(len(plan.portions), plan.num_buckets))
    context = multiprocessing.get_context("forkserver")
    rows = context.Value("q", 0)
    if num_workers == 1:
        _count_into(rows)
        _run_stages(plan, rows, make_bar, _one_after_the_other)
        return
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(num_workers, context, _begin_worker, (rows,)) as pool:
        _run_stages(plan, rows, make_bar, functools.partial(_in_pool, pool))


def _run_stages(
    plan: Plan, rows, make_bar: MakeBar, run: Callable[[list[Task]], Iterator[list[Mistake | None]]]
) -> None:
    """run: does tasks and yields, from time to time, what those that have ended meanwhile returned."""
    for stage in STAGES:
        total = num_tasks(plan, stage)
        missing = [number for number in range(total) if not _mark(plan, stage, number).exists()]
        if not missing:
            continue
        rows.value = 0
        begun = time.monotonic()
        with make_bar(total, stage) as bar:
            bar.advance(total - len(missing))
            for ended in run([(plan.work, stage, number) for number in missing]):
                for mistake in ended:
                    if mistake is not None:
                        raise ValueError(mistake.line)
                bar.advance(len(ended), **{"rows/s": round(rows.value / (time.monotonic() - begun))})


def _one_after_the_other(tasks: list[Task]) -> Iterator[list[Mistake | None]]:
    for task in tasks:
        yield [run_task_or_say(*task)]


def _in_pool(pool: ProcessPoolExecutor, tasks: list[Task]) -> Iterator[list[Mistake | None]]:
    running = {pool.submit(run_task_or_say, *task) for task in tasks}
    try:
        while running:
            done, running = wait(running, timeout=POLL_SECONDS, return_when="FIRST_COMPLETED")
            yield [one.result() for one in done]
    finally:
        for one in running:
            one.cancel()


def _begin_worker(rows) -> None:
    _count_into(rows)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for its next task for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _count_into(rows) -> None:
    global _rows
    _rows = rows


def _advance(count: int) -> None:
    if _rows is not None:
        with _rows.get_lock():
            _rows.value += count


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
    run_task(work, stage, rank)

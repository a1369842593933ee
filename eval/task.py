"""What a benchmark is: a file in `eval/tasks/` that holds `TASK`, an instance of a subclass of `Task`."""

from __future__ import annotations

import importlib
import json
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from keju.eval import tasks


@dataclass(frozen=True)
class Item:
    """A question and its candidates, as many as it has.

    prompt: text before the choice. choices: what may follow, one of them right: number `gold` (None: not known).
    neutral: the prompt without what the question is about, for `acc_pmi`; None where there is no such thing.
    group: items of a group (a subject) share instruction and shots. where: "file:line".
    """

    prompt: str
    choices: tuple[str, ...]
    gold: int | None
    neutral: str | None = None
    group: str = ""
    where: str = ""


class Task(ABC):
    """version: goes up with every change that changes scores. protocols: ways to ask, the first is the default.

    metric: the main one of keju.eval.metrics.METRICS. separator: stands between shots, and before the question.
    """

    version: int
    protocols: tuple[str, ...] = ("default",)
    metric: str = "acc"
    separator: str = "\n\n"

    @abstractmethod
    def items(self, data_dir: Path, protocol: str) -> list[Item]:
        """The items that are scored. Raises ValueError naming `file:line`."""

    @abstractmethod
    def shots(self, data_dir: Path, protocol: str) -> list[Item]:
        """The pool of few-shot examples: other rows than those of `items`, with known answers."""

    def instruction(self, group: str, protocol: str) -> str:
        """What stands before shots and question."""
        return ""

    def is_conversation(self, protocol: str) -> bool:
        """Whether the prompt is a user's turn and the choice the assistant's, in the form that SFT trains."""
        return False


def task_names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(tasks.__path__))


def load_task(name: str) -> Task:
    """The task of `eval/tasks/<name>.py`. Raises ValueError listing the right names."""
    if name not in task_names():
        raise ValueError(f"--tasks {name}: choose from {', '.join(task_names())}")
    return importlib.import_module(f"{tasks.__name__}.{name}").TASK


def read_rows(path: Path) -> Iterator[tuple[str, dict]]:
    """("file:line", JSON object) of each line. Raises ValueError for a missing file and for what is no object."""
    if not path.is_file():
        raise ValueError(f"--data_dir: {path} does not exist")
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: malformed JSON ({error})") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{number}: expected a JSON object")
            yield f"{path}:{number}", row

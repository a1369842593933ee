"""What a benchmark is: a file in `eval/tasks/` that holds `TASK`, an instance of a subclass of `Task`."""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from keju.errors import UserError
from keju.eval import tasks
from keju.eval.benchmark_files import BadRow, Files, Row


@dataclass(frozen=True)
class Item:
    """A question and its candidates, as many as it has.

    prompt: text before the choice. choices: what may follow, one of them right: number `gold` (None: not known).
    after: text behind the choice. Where there is one, even "", all of the filled text is scored, not the choice alone.
    neutral: the prompt without what the question is about, for `acc_pmi`; None where there is no such thing.
    references: right answers of a question whose answer is written freely; it has no choices.
    passage: items of one passage share their choices, and no two of them have the same right one.
    group: items of a group (a subject) share instruction and shots. key: what the benchmark calls the question.
    where: "file:line".
    """

    prompt: str
    choices: tuple[str, ...] = ()
    gold: int | None = None
    after: str | None = None
    neutral: str | None = None
    references: tuple[str, ...] = ()
    passage: str = ""
    group: str = ""
    key: str = ""
    where: str = ""

    @property
    def question(self) -> tuple[str, str | None]:
        return self.prompt, self.after

    @property
    def answer(self) -> str | None:
        """The right answer, where it is known."""
        if self.references:
            return self.references[0]
        return None if self.gold is None else self.choices[self.gold]

    @property
    def solved(self) -> str:
        """The question with its right answer: a shot."""
        return self.prompt + self.answer + (self.after or "")


@dataclass(frozen=True)
class Protocol:
    """One way to ask the questions of a task, and to count.

    scored: what a model is judged by: the letter of a choice, its text, a whole template filled in with it, or a text
    that it writes. metric: the main one (keju.eval.metrics, or f1 and em of written answers). average: over all items
    ("micro"), or over the averages of subjects ("macro"). first_shots: the first rows of the pool in their order, as
    benchmarks with a file of five examples do; otherwise the seed draws. conversation: the question is a user's turn
    and the answer the assistant's, in the form that SFT trains. max_new_tokens: of written answers.
    """

    scored: Literal["letter", "text", "template", "written"]
    metric: str = "acc"
    average: Literal["micro", "macro"] = "micro"
    separator: str = "\n\n"
    first_shots: bool = False
    conversation: bool = False
    max_new_tokens: int = 64


class Task(ABC):
    """version: goes up with every change that changes scores. suites: groups of tasks that this one is in.

    protocols: ways to ask by name, the first is the default. splits: what can be scored, the first is the default.
    folders: where in --data_dir its files may lie. categories: subject -> category; subsets: name -> subjects.
    """

    version: int
    protocols: Mapping[str, Protocol]
    suites: tuple[str, ...] = ()
    splits: tuple[str, ...] = ("test",)
    folders: tuple[str, ...] = ()
    categories: Mapping[str, str] = {}
    subsets: Mapping[str, Sequence[str]] = {}

    @abstractmethod
    def read(self, files: Files, split: str) -> Iterator[Row]:
        """The rows that are scored."""

    @abstractmethod
    def read_shots(self, files: Files) -> Iterator[Row]:
        """The pool of few-shot examples: rows of another file, with known answers."""

    @abstractmethod
    def item(self, row: Row, protocol: str) -> Item:
        """The question of a row (without `group` and `where`). Raises BadRow."""

    def instruction(self, group: str, protocol: str) -> str:
        """What stands before shots and question."""
        return ""

    def items(self, files: Files, protocol: str, split: str) -> list[Item]:
        """Raises UserError naming `file:line`, unless `files` skips bad rows."""
        return self._items(self.read(files, split), files, protocol)

    def shots(self, files: Files, protocol: str) -> list[Item]:
        return self._items(self.read_shots(files), files, protocol)

    def subjects_by_category(self) -> dict[str, list[str]]:
        subjects: dict[str, list[str]] = {}
        for subject, category in self.categories.items():
            subjects.setdefault(category, []).append(subject)
        return subjects

    def chosen_subjects(self, names: Sequence[str] | None) -> list[str] | None:
        """The subjects that `names` stand for, which may be categories and subsets too; None: all.

        Raises UserError listing the right names.
        """
        if names is None:
            return None
        parts = {subject: [subject] for subject in self.categories} | self.subjects_by_category() | self.subsets
        for name in names:
            if name not in parts:
                known = ", ".join(reversed(parts)) or "none"
                raise UserError(f"{name}: the subjects of {type(self).__name__} are {known}", option="subjects")
        chosen = {subject for name in names for subject in parts[name]}
        return [subject for subject in self.categories if subject in chosen]

    def submission(self, rows: Sequence[Mapping[str, Any]]) -> Any:
        """What the benchmark's site takes, from the rows of predictions; None where there is no such thing."""
        return None

    def _items(self, rows: Iterable[Row], files: Files, protocol: str) -> list[Item]:
        items = []
        for row in rows:
            try:
                item = self.item(row, protocol)
            except BadRow as error:
                files.reject(row.where, error)
            else:
                items.append(replace(item, group=row.group, where=row.where))
        return items


def task_names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(tasks.__path__))


def load_task(name: str) -> Task:
    """The task of `eval/tasks/<name>.py`. Raises UserError listing the right names."""
    if name not in task_names():
        raise UserError(f"{name}: choose from {', '.join(task_names())}", option="tasks")
    return importlib.import_module(f"{tasks.__name__}.{name}").TASK


def expand_tasks(names: Iterable[str]) -> list[str]:
    """Names of tasks and of suites ("clue") -> names of tasks, each once. Raises UserError listing the right ones."""
    tasks_there, suites = task_names(), {}
    for name in tasks_there:
        for suite in load_task(name).suites:
            suites.setdefault(suite, []).append(name)
    unknown = [name for name in names if name not in tasks_there and name not in suites]
    if unknown:
        known = ", ".join([*tasks_there, *(f"{suite} (all of its tasks)" for suite in suites)])
        raise UserError(f"{unknown[0]}: choose from {known}", option="tasks")
    return list(dict.fromkeys(task for name in names for task in suites.get(name, [name])))

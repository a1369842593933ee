"""One task, one number of shots: items in, figures and a row for each item out."""

from __future__ import annotations

import random
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from keju.encoding.encoder import Encoder
from keju.errors import UserError
from keju.eval.answers import Asked, Counter, Examinee, OnProgress, chosen_rows, written_rows
from keju.eval.averages import benchmark_figures
from keju.eval.benchmark_files import Files
from keju.eval.prompts import NoRoom, Prompter, pick_shots
from keju.eval.scoring import Question
from keju.eval.task import Item, Task, load_task
from keju.eval.task import Protocol as Rules

SMALL_MASS = 0.1  # below it a result gets a warning
NUM_NAMED = 20  # so many of the rows that were left out are named


@dataclass(frozen=True)
class TaskResult:
    """summary: what goes into results.json. rows: what goes into the predictions, one for each item. example: the first
    prompt as it was scored. submission: what the benchmark's site takes, or None."""

    summary: dict[str, Any]
    rows: list[dict[str, Any]]
    example: str
    submission: Any = None


@dataclass(frozen=True)
class PreparedTask:
    """A task that has been read: its items with their shots, and the rows that were left out."""

    name: str
    task: Task
    protocol: str
    conversation: bool
    split: str
    num_shots: int
    seed: int
    items: list[Item]
    shots: dict[str, list[Item]]
    files: Files
    pool: Files

    @property
    def rules(self) -> Rules:
        return self.task.protocols[self.protocol]


def prepare_task(
    name: str,
    data_dir: str | Path,
    *,
    num_shots: int,
    protocol: str | None = None,
    split: str | None = None,
    subjects: Sequence[str] | None = None,
    max_items: int | None = None,
    apply_chat_template: bool = False,
    on_bad_row: str = "error",
    seed: int = 0,
) -> PreparedTask:
    """The questions of the task `name`, with `num_shots` examples before each.

    protocol, split: by default the first that the task knows. subjects: only those, or categories of them. max_items: a
    random part of the items. on_bad_row: what a row does that is wrong or too long, "error" or "skip" (and count).
    Raises UserError naming the flag or `file:line`.
    """
    task = load_task(name)
    protocol = _chosen("protocol", protocol, name, list(task.protocols))
    split = _chosen("split", split, name, task.splits)
    rules = task.protocols[protocol]
    if apply_chat_template and rules.scored == "template":
        raise UserError(f"{name} {protocol} scores a filled template, which has no turns", option="apply_chat_template")
    chosen = task.chosen_subjects(subjects)
    files = Files(data_dir, task.folders, on_bad_row, chosen)
    items = task.items(files, protocol, split)
    if not items:
        raise UserError(f"{name}: there are no items in {files.folder}{_why(files)}", option="tasks")
    # Bad rows of the pool are left out and counted whatever --on_bad_row says: nobody's score hangs on them.
    pool = Files(data_dir, task.folders, "skip", chosen)
    shots = task.shots(pool, protocol) if num_shots else []
    shots = pick_shots(shots, items, num_shots, seed, first=rules.first_shots)
    if max_items is not None and max_items < len(items):
        print(f"{name}: --max_items {max_items} leaves out {len(items) - max_items} of {len(items)} items")
        kept = sorted(random.Random(seed).sample(range(len(items)), max_items))
        items = [items[index] for index in kept]
    conversation = apply_chat_template or rules.conversation
    return PreparedTask(name, task, protocol, conversation, split, num_shots, seed, items, shots, files, pool)


def examine(
    prepared: PreparedTask,
    model: Examinee,
    encoder: Encoder,
    *,
    max_length: int,
    on_progress: OnProgress = lambda done, total, num_tokens, accuracy: None,
) -> TaskResult:
    """What `model` makes of an prepared. max_length: tokens that it reads. Raises UserError naming `file:line`."""
    start = time.perf_counter()
    rules, files = prepared.rules, prepared.files
    prompter = Prompter(encoder, prepared.task, prepared.protocol, prepared.conversation, max_length)
    ask = prompter.opening if rules.scored == "written" else prompter.question
    asked = Asked()
    for item in prepared.items:
        try:
            question, dropped = ask(item, prepared.shots[item.group])
        except NoRoom as error:
            files.reject(item.where, str(error).removeprefix(f"{item.where}: "))
        else:
            asked.items.append(item)
            asked.questions.append(_compact(question))
            asked.dropped.append(dropped)
    if not asked.items:
        raise UserError(f"{prepared.name}: not one question can be asked{_why(files)}", option="tasks")
    counter = Counter(on_progress, len(asked.items))
    if rules.scored == "written":
        rows = written_rows(model, prompter, asked, counter)
    else:
        rows = chosen_rows(model, prompter, asked, prepared.shots, counter)
    summary = {
        "task": prepared.name,
        "version": prepared.task.version,
        "protocol": prepared.protocol,
        "scored": rules.scored,
        "conversation": prepared.conversation,
        "split": prepared.split,
        "num_shots": prepared.num_shots,
        "seed": prepared.seed,
        "num_items": len(rows),
        "metric": rules.metric,
        "average": rules.average,
        **_figures(prepared.task, rules, rows),
        "items_with_shots_dropped": sum(count > 0 for count in asked.dropped),
        "shots_dropped": sum(asked.dropped),
        "items_among_shots": _count_among_shots(asked.items, prepared.shots),
        "num_skipped": len(files.rejected),
        "skipped": files.rejected[:NUM_NAMED],
        "num_shots_skipped": len(prepared.pool.rejected),
        "shots_skipped": prepared.pool.rejected[:NUM_NAMED],
        "seconds": time.perf_counter() - start,
        "num_tokens": counter.tokens,
    }
    submission = prepared.task.submission(rows)
    if summary["accuracy"] is None and submission is None:
        raise UserError(
            f"{prepared.split}: no item of {prepared.name} has a known answer, there is nothing to compare with",
            option="split",
        )
    first = asked.questions[0] if rules.scored == "written" else asked.questions[0].prompt
    return TaskResult(summary, rows, encoder.tokenizer.decode(list(first)), submission)


def evaluate(
    name: str,
    model: Examinee,
    encoder: Encoder,
    data_dir: str | Path,
    *,
    max_length: int,
    on_progress: OnProgress = lambda done, total, num_tokens, accuracy: None,
    **settings: Any,
) -> TaskResult:
    """Reads the task `name` (settings: those of prepare_task) and examines `model` in it."""
    prepared = prepare_task(name, data_dir, **settings)
    return examine(prepared, model, encoder, max_length=max_length, on_progress=on_progress)


def _figures(task: Task, rules: Rules, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The main metric as `accuracy` with its interval, all figures, chance, and the probability mass on the choices."""
    judged = [row for row in rows if "credit" in row]
    figures: dict[str, Any] = {"accuracy": None, "interval": None, "metrics": {}, "chance": None}
    if judged:
        credits = {name: [(row["group"], row["credit"][name]) for row in judged] for name in judged[0]["credit"]}
        figures |= benchmark_figures(task, rules.average, credits, rules.metric)
        main = figures["metrics"][rules.metric]
        figures |= {"accuracy": main["value"], "interval": [main["low"], main["high"]]}
    if rules.scored != "written":
        figures["chance"] = sum(1 / len(row["choices"]) for row in rows) / len(rows)
    masses = [row["mass"] for row in rows if "mass" in row]
    if masses:
        figures["choice_mass"] = sum(masses) / len(masses)
    return figures


def _compact(question: Question | list[int]) -> Question | array:
    """Prompts as arrays: a benchmark has millions of tokens, and a list takes nine times as much for each."""
    if isinstance(question, Question):
        return replace(question, prompt=array("i", question.prompt))
    return array("i", question)


def _count_among_shots(items: Sequence[Item], shots: dict[str, list[Item]]) -> int:
    """Questions that the files of a benchmark have twice, among the shots and to be scored (MMLU's val has one)."""
    shown = {group: {shot.question for shot in chosen} for group, chosen in shots.items()}
    return sum(item.question in shown[item.group] for item in items)


def _chosen(option: str, value: str | None, name: str, known: Sequence[str]) -> str:
    if value is not None and value not in known:
        raise UserError(f"{value}: {name} knows {', '.join(known)}", option=option)
    return known[0] if value is None else value


def _why(files: Files) -> str:
    return f"; {len(files.rejected)} were skipped, such as {files.rejected[0]}" if files.rejected else ""

"""One task, one number of shots: items in, figures and a row for each item out."""

from __future__ import annotations

import random
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from keju.encoding.encoder import Encoder
from keju.eval.averages import benchmark_figures
from keju.eval.benchmark_files import Files
from keju.eval.metrics import METRICS, ChoiceScores, choice_mass, credit, solve_jointly
from keju.eval.prompts import NoRoom, Prompter, pick_shots
from keju.eval.scoring import OnBatch, Question
from keju.eval.span_metrics import span_scores
from keju.eval.task import Item, Task, load_task
from keju.eval.task import Protocol as Rules

SMALL_MASS = 0.1  # below it a result gets a warning
NUM_NAMED = 20  # so many of the rows that were left out are named
# (questions done, all questions, tokens of the last batch, share of right answers so far or None)
OnProgress = Callable[[int, int, int, float | None], None]


class Subject(Protocol):
    """Whose answers are examined: a model in this process, or one behind a server."""

    def score(self, questions: Sequence[Question], on_batch: OnBatch) -> list[list[float]]:
        """Summed log-probability of each choice of each question; see keju.eval.scoring.score_questions."""

    def write(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, on_batch: Callable[[dict[int, str], int], None]
    ) -> list[str]:
        """The likeliest continuation of each prompt (token ids), in their order; its first line has to be there."""


@dataclass(frozen=True)
class TaskResult:
    """summary: what goes into results.json. rows: what goes into the predictions, one for each item. example: the first
    prompt as it was scored. submission: what the benchmark's site takes, or None."""

    summary: dict[str, Any]
    rows: list[dict[str, Any]]
    example: str
    submission: Any = None


@dataclass(frozen=True)
class Exam:
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


@dataclass
class _Asked:
    """Items with what the model reads. dropped: shots without room, for each of them."""

    items: list[Item] = field(default_factory=list)
    questions: list[Any] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)


def read_exam(
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
) -> Exam:
    """The questions of the task `name`, with `num_shots` examples before each.

    protocol, split: by default the first that the task knows. subjects: only those, or categories of them. max_items: a
    random part of the items. on_bad_row: what a row does that is wrong or too long, "error" or "skip" (and count).
    Raises ValueError naming the flag or `file:line`.
    """
    task = load_task(name)
    protocol = _chosen("protocol", protocol, name, list(task.protocols))
    split = _chosen("split", split, name, task.splits)
    rules = task.protocols[protocol]
    if apply_chat_template and rules.scored == "template":
        raise ValueError(f"--apply_chat_template: {name} {protocol} scores a filled template, which has no turns")
    chosen = task.chosen_subjects(subjects)
    files = Files(data_dir, task.folders, on_bad_row, chosen)
    items = task.items(files, protocol, split)
    if not items:
        raise ValueError(f"--tasks {name}: there are no items in {files.folder}{_why(files)}")
    # Bad rows of the pool are left out and counted whatever --on_bad_row says: nobody's score hangs on them.
    pool = Files(data_dir, task.folders, "skip", chosen)
    shots = task.shots(pool, protocol) if num_shots else []
    shots = pick_shots(shots, items, num_shots, seed, first=rules.first_shots)
    if max_items is not None and max_items < len(items):
        kept = sorted(random.Random(seed).sample(range(len(items)), max_items))
        items = [items[index] for index in kept]
    conversation = apply_chat_template or rules.conversation
    return Exam(name, task, protocol, conversation, split, num_shots, seed, items, shots, files, pool)


def examine(
    exam: Exam,
    model: Subject,
    encoder: Encoder,
    *,
    max_length: int,
    on_progress: OnProgress = lambda done, total, num_tokens, accuracy: None,
) -> TaskResult:
    """What `model` makes of an exam. max_length: tokens that it reads. Raises ValueError naming `file:line`."""
    start = time.perf_counter()
    rules, files = exam.rules, exam.files
    prompter = Prompter(encoder, exam.task, exam.protocol, exam.conversation, max_length)
    ask = prompter.opening if rules.scored == "written" else prompter.question
    asked = _Asked()
    for item in exam.items:
        try:
            question, dropped = ask(item, exam.shots[item.group])
        except NoRoom as error:
            files.reject(item.where, str(error).removeprefix(f"{item.where}: "))
        else:
            asked.items.append(item)
            asked.questions.append(_compact(question))
            asked.dropped.append(dropped)
    if not asked.items:
        raise ValueError(f"--tasks {exam.name}: not one question can be asked{_why(files)}")
    counter = _Counter(on_progress, len(asked.items))
    answer = _written_rows if rules.scored == "written" else _chosen_rows
    rows = answer(model, prompter, asked, exam.shots, counter)
    summary = {
        "task": exam.name,
        "version": exam.task.version,
        "protocol": exam.protocol,
        "scored": rules.scored,
        "conversation": exam.conversation,
        "split": exam.split,
        "num_shots": exam.num_shots,
        "seed": exam.seed,
        "num_items": len(rows),
        "metric": rules.metric,
        "average": rules.average,
        **_figures(exam.task, rules, rows),
        "items_with_shots_dropped": sum(count > 0 for count in asked.dropped),
        "shots_dropped": sum(asked.dropped),
        "items_among_shots": _count_among_shots(asked.items, exam.shots),
        "num_skipped": len(files.rejected),
        "skipped": files.rejected[:NUM_NAMED],
        "num_shots_skipped": len(exam.pool.rejected),
        "shots_skipped": exam.pool.rejected[:NUM_NAMED],
        "seconds": time.perf_counter() - start,
        "num_tokens": counter.tokens,
    }
    submission = exam.task.submission(rows)
    if summary["accuracy"] is None and submission is None:
        raise ValueError(
            f"--split {exam.split}: no item of {exam.name} has a known answer, there is nothing to compare with"
        )
    first = asked.questions[0] if rules.scored == "written" else asked.questions[0].prompt
    return TaskResult(summary, rows, encoder.tokenizer.decode(list(first)), submission)


def evaluate(
    name: str,
    model: Subject,
    encoder: Encoder,
    data_dir: str | Path,
    *,
    max_length: int,
    on_progress: OnProgress = lambda done, total, num_tokens, accuracy: None,
    **settings: Any,
) -> TaskResult:
    """Reads the task `name` (settings: those of read_exam) and examines `model` in it."""
    exam = read_exam(name, data_dir, **settings)
    return examine(exam, model, encoder, max_length=max_length, on_progress=on_progress)


class _Counter:
    """Progress in items, with the share of right ones so far."""

    def __init__(self, on_progress: OnProgress, total: int) -> None:
        self.on_progress, self.total = on_progress, total
        self.done = self.tokens = self.judged = 0
        self.right = 0.0

    def count(self, credits: Sequence[float | None], num_tokens: int) -> None:
        known = [value for value in credits if value is not None]
        self.done, self.judged, self.right = self.done + len(credits), self.judged + len(known), self.right + sum(known)
        self.tokens += num_tokens
        self.on_progress(self.done, self.total, num_tokens, self.right / self.judged if self.judged else None)


def _chosen_rows(model: Subject, prompter: Prompter, asked: _Asked, shots, counter: _Counter) -> list[dict[str, Any]]:
    """Every different choice under its neutral prompt first, so that then each item is judged as soon as it is done."""
    metric = prompter.rules.metric
    alone: dict[tuple[tuple[int, ...], tuple[int, ...]], float] = {}
    neutral: list[list[tuple] | None] = []
    for item, dropped in zip(asked.items, asked.dropped, strict=True):
        if item.neutral is None:
            neutral.append(None)
            continue
        question = prompter.neutral_question(item, shots[item.group][dropped:])
        neutral.append([(tuple(question.prompt), tuple(choice)) for choice in question.choices])
        alone |= dict.fromkeys(neutral[-1], 0.0)
    singles = [Question(prompt, [choice]) for prompt, choice in alone]
    found = model.score(singles, lambda scores, num_tokens: counter.count([], num_tokens)) if singles else []
    alone = dict(zip(alone, (value for (value,) in found), strict=True))

    def judge(index: int, logprobs: Sequence[float]) -> dict[str, Any]:
        keys = neutral[index]
        return _row(asked.items[index], asked.questions[index], logprobs, keys and [alone[key] for key in keys], metric)

    def on_batch(scores: dict[int, list[float]], num_tokens: int) -> None:
        credits = [judge(index, logprobs).get("credit", {}).get(metric) for index, logprobs in scores.items()]
        counter.count(credits, num_tokens)

    rows = [judge(index, logprobs) for index, logprobs in enumerate(model.score(asked.questions, on_batch))]
    _solve_passages(asked.items, rows, metric)
    return rows


def _row(
    item: Item, question: Question, logprobs: Sequence[float], alone: Sequence[float] | None, metric: str
) -> dict[str, Any]:
    texts = item.choices if item.after is None else [item.prompt + choice + item.after for choice in item.choices]
    scored = ChoiceScores(
        tuple(logprobs),
        None if alone is None else tuple(alone),
        tuple(map(len, texts)),
        tuple(question.num_scored + len(choice) for choice in question.choices),
    )
    scores = {name: values for name, score in METRICS.items() if (values := score(scored)) is not None}
    judged = scores.get(metric, scores["acc"])
    row = {
        "where": item.where,
        "key": item.key,
        "group": item.group,
        "prompt": item.prompt,
        **({"after": item.after} if item.after is not None else {}),
        "choices": list(item.choices),
        "gold": item.gold,
        "pred": judged.index(max(judged)),
        "scores": scores,
    }
    if item.after is None:
        row["mass"] = choice_mass(logprobs)
    if item.gold is not None:
        row["credit"] = {name: credit(values, item.gold) for name, values in scores.items()}
    return row


def _solve_passages(items: Sequence[Item], rows: list[dict[str, Any]], metric: str) -> None:
    """Adds `acc_joint` to the credits of items that share a passage, and makes it their answer if it is the metric."""
    passages: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        if item.passage:
            passages.setdefault(item.passage, []).append(index)
    solved = solve_jointly(
        {name: [rows[index]["scores"]["acc"] for index in members] for name, members in passages.items()}
    )
    for name, members in passages.items():
        for index, pred in zip(members, solved[name], strict=True):
            if items[index].gold is not None:
                rows[index]["credit"]["acc_joint"] = float(pred == items[index].gold)
            if metric == "acc_joint":
                rows[index]["pred"] = pred


def _written_rows(model: Subject, prompter: Prompter, asked: _Asked, shots, counter: _Counter) -> list[dict[str, Any]]:
    def judge(index: int, text: str) -> dict[str, Any]:
        item = asked.items[index]
        answer = next((line.strip() for line in text.splitlines() if line.strip()), "")
        return {
            "where": item.where,
            "key": item.key,
            "group": item.group,
            "prompt": item.prompt,
            "answer": answer,
            "references": list(item.references),
            "credit": span_scores(answer, item.references),
        }

    def on_batch(texts: dict[int, str], num_tokens: int) -> None:
        counter.count(
            [judge(index, text)["credit"][prompter.rules.metric] for index, text in texts.items()], num_tokens
        )

    texts = model.write(asked.questions, prompter.rules.max_new_tokens, on_batch)
    return [judge(index, text) for index, text in enumerate(texts)]


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


def _chosen(flag: str, value: str | None, name: str, known: Sequence[str]) -> str:
    if value is not None and value not in known:
        raise ValueError(f"--{flag} {value}: {name} knows {', '.join(known)}")
    return known[0] if value is None else value


def _why(files: Files) -> str:
    return f"; {len(files.rejected)} were skipped, such as {files.rejected[0]}" if files.rejected else ""

"""One task, one number of shots: items in, metrics and a row for each item out."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from keju.encoding.encoder import Encoder
from keju.eval.metrics import METRICS, ChoiceScores, credit
from keju.eval.prompts import Prompter, pick_shots
from keju.eval.scoring import Question
from keju.eval.statistics import wilson_interval
from keju.eval.task import Item, Task, load_task

# (questions, on_batch=...) -> log-likelihood of every choice; keju.eval.scoring.score_questions with its model bound
Scorer = Callable[..., list[list[float]]]


@dataclass(frozen=True)
class TaskResult:
    """summary: what goes into results.json. rows: what goes into the predictions, one for each item. example: the first
    prompt as it was scored."""

    summary: dict[str, Any]
    rows: list[dict[str, Any]]
    example: str


@dataclass
class _Questions:
    """Everything to be scored: one question an item, then every different choice once under its neutral prompt."""

    questions: list[Question] = field(default_factory=list)
    neutral: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = field(default_factory=dict)
    neutral_places: list[list[int] | None] = field(default_factory=list)

    def add_neutral(self, question: Question | None) -> None:
        if question is None:
            self.neutral_places.append(None)
            return
        keys = [(tuple(question.prompt), tuple(choice)) for choice in question.choices]
        self.neutral_places.append([self.neutral.setdefault(key, len(self.neutral)) for key in keys])

    def all(self) -> list[Question]:
        return self.questions + [Question(prompt, [choice]) for prompt, choice in self.neutral]


def evaluate(
    name: str,
    score: Scorer,
    encoder: Encoder,
    data_dir: Path,
    *,
    num_shots: int,
    max_length: int,
    protocol: str | None = None,
    max_items: int | None = None,
    apply_chat_template: bool = False,
    seed: int = 0,
    on_progress: Callable[[int, int, int], None] = lambda done, total, num_tokens: None,
) -> TaskResult:
    """Scores the task `name` with `num_shots` examples before each question.

    max_length: tokens that the model reads. max_items: a random part of the items. on_progress is told how many
    questions are done, how many there are, and the tokens of the last row.
    Raises ValueError naming the flag or `file:line`.
    """
    task = load_task(name)
    protocol = task.protocols[0] if protocol is None else protocol
    if protocol not in task.protocols:
        raise ValueError(f"--protocol {protocol}: {name} knows {', '.join(task.protocols)}")
    items = task.items(data_dir, protocol)
    if not items:
        raise ValueError(f"--tasks {name}: there are no items in {data_dir}")
    shots = pick_shots(task.shots(data_dir, protocol) if num_shots else [], items, num_shots, seed)
    if max_items is not None and max_items < len(items):
        kept = sorted(random.Random(seed).sample(range(len(items)), max_items))
        items = [items[index] for index in kept]
    conversation = apply_chat_template or task.is_conversation(protocol)
    prompter = Prompter(encoder, task, protocol, conversation, max_length)

    start = time.perf_counter()
    prepared, dropped = _prepare(prompter, items, shots)
    questions = prepared.all()
    done = tokens = 0

    def on_batch(num_questions: int, num_tokens: int) -> None:
        nonlocal done, tokens
        done, tokens = done + num_questions, tokens + num_tokens
        on_progress(done, len(questions), num_tokens)

    logprobs = score(questions, on_batch=on_batch)
    alone = [single for (single,) in logprobs[len(items) :]]
    scores = [
        ChoiceScores(
            tuple(logprobs[number]),
            None if places is None else tuple(alone[place] for place in places),
            tuple(map(len, item.choices)),
        )
        for number, (item, places) in enumerate(zip(items, prepared.neutral_places, strict=True))
    ]
    seconds = time.perf_counter() - start
    rows = [_row(item, scored, task.metric) for item, scored in zip(items, scores, strict=True)]
    summary = {
        "task": name,
        "version": task.version,
        "protocol": protocol,
        "conversation": conversation,
        "num_shots": num_shots,
        "seed": seed,
        "num_items": len(items),
        "metric": task.metric,
        **_metrics(task, rows),
        "chance": sum(1 / len(item.choices) for item in items) / len(items),
        "items_with_shots_dropped": sum(count > 0 for count in dropped),
        "shots_dropped": sum(dropped),
        "seconds": seconds,
        "num_tokens": tokens,
    }
    return TaskResult(summary, rows, encoder.tokenizer.decode(questions[0].prompt))


def _prepare(prompter: Prompter, items: Sequence[Item], shots: dict[str, list[Item]]) -> tuple[_Questions, list[int]]:
    """The questions of all items, and how many shots each of them had no room for."""
    prepared, dropped = _Questions(), []
    for item in items:
        question, missing = prompter.question(item, shots[item.group])
        prepared.questions.append(question)
        kept = shots[item.group][missing:]
        prepared.add_neutral(None if item.neutral is None else prompter.neutral_question(item, kept))
        dropped.append(missing)
    return prepared, dropped


def _row(item: Item, scored: ChoiceScores, metric: str) -> dict[str, Any]:
    scores = {name: values for name, score in METRICS.items() if (values := score(scored)) is not None}
    row = {
        "where": item.where,
        "group": item.group,
        "prompt": item.prompt,
        "choices": list(item.choices),
        "gold": item.gold,
        "pred": scores[metric].index(max(scores[metric])),
        "scores": scores,
    }
    if item.gold is not None:
        row["credit"] = {name: credit(values, item.gold) for name, values in scores.items()}
    return row


def _metrics(task: Task, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The main metric as `accuracy` with its interval, and all of them by name; over the items with a known answer."""
    credits = [row["credit"] for row in rows if "credit" in row]
    if not credits:
        raise ValueError("no item has a known answer: there is nothing to compare with")
    metrics = {}
    for name in credits[0]:
        right = sum(row[name] for row in credits)
        low, high = wilson_interval(right, len(credits))
        metrics[name] = {"value": right / len(credits), "low": low, "high": high}
    main = metrics[task.metric]
    return {"accuracy": main["value"], "interval": [main["low"], main["high"]], "metrics": metrics}

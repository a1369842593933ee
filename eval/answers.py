"""What an examinee answers, and what that is worth: a row for each item."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from keju.eval.metrics import METRICS, ChoiceScores, choice_mass, credit, solve_jointly
from keju.eval.prompts import Prompter
from keju.eval.scoring import OnBatch, Question
from keju.eval.span_metrics import span_scores
from keju.eval.task import Item

# (questions done, all questions, tokens of the last batch, share of right answers so far or None)
OnProgress = Callable[[int, int, int, float | None], None]


class Examinee(Protocol):
    """Whose answers are examined: a model in this process, or one behind a server."""

    def score(self, questions: Sequence[Question], on_batch: OnBatch) -> list[list[float]]:
        """Summed log-probability of each choice of each question; see keju.eval.scoring.score_questions."""

    def write(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, on_batch: Callable[[dict[int, str], int], None]
    ) -> list[str]:
        """The likeliest continuation of each prompt (token ids), in their order; its first line has to be there."""


@dataclass
class Asked:
    """Items with what the model reads. dropped: shots without room, for each of them."""

    items: list[Item] = field(default_factory=list)
    questions: list[Any] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)


class Counter:
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


def chosen_rows(model: Examinee, prompter: Prompter, asked: Asked, shots, counter: Counter) -> list[dict[str, Any]]:
    """Every different choice under its neutral prompt first, so that then each item is judged as soon as it is done."""
    metric = prompter.rules.metric
    neutral: list[list[tuple] | None] = []
    known: dict[tuple, list[tuple]] = {}  # items with the same labels have the same neutral question
    for item, dropped in zip(asked.items, asked.dropped, strict=True):
        if item.neutral is None:
            neutral.append(None)
            continue
        same = (item.neutral, item.choices, item.group, dropped)
        if same not in known:
            question = prompter.neutral_question(item, shots[item.group][dropped:])
            known[same] = [(tuple(question.prompt), tuple(choice)) for choice in question.choices]
        neutral.append(known[same])
    different = list(dict.fromkeys(key for keys in known.values() for key in keys))
    singles = [Question(prompt, [choice]) for prompt, choice in different]
    found = model.score(singles, lambda scores, num_tokens: counter.count([], num_tokens)) if singles else []
    alone = dict(zip(different, (value for (value,) in found), strict=True))
    rows: dict[int, dict[str, Any]] = {}

    def judge(index: int, logprobs: Sequence[float]) -> dict[str, Any]:
        keys = neutral[index]
        return _row(asked.items[index], asked.questions[index], logprobs, keys and [alone[key] for key in keys], metric)

    def on_batch(scores: dict[int, list[float]], num_tokens: int) -> None:
        judged = {index: judge(index, logprobs) for index, logprobs in scores.items()}
        rows.update(judged)
        # Passages are solved when all of them are there; until then each question is by itself.
        found = [row.get("credit", {}) for row in judged.values()]
        counter.count([credits.get(metric, credits.get("acc")) for credits in found], num_tokens)

    model.score(asked.questions, on_batch)
    in_order = [rows[index] for index in range(len(asked.items))]
    _solve_passages(asked.items, in_order, metric)
    return in_order


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


def written_rows(model: Examinee, prompter: Prompter, asked: Asked, counter: Counter) -> list[dict[str, Any]]:
    rows: dict[int, dict[str, Any]] = {}

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
        judged = {index: judge(index, text) for index, text in texts.items()}
        rows.update(judged)
        counter.count([row["credit"][prompter.rules.metric] for row in judged.values()], num_tokens)

    model.write(asked.questions, prompter.rules.max_new_tokens, on_batch)
    return [rows[index] for index in range(len(asked.items))]

"""Credits of single questions to figures: of subjects, of categories, of the whole benchmark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from keju.eval.statistics import macro_interval, mean_interval, wilson_interval
from keju.eval.task import Task

GRADED = ("f1",)
Credits = Sequence[tuple[str, float]]  # (subject, credit of 0..1) of each question


def figure(credits: Credits, average: str, *, graded: bool = False) -> dict[str, Any]:
    """{"value", "low", "high", "num_items"}: over all questions ("micro"), or over the means of subjects ("macro").

    graded: credits are degrees (F1), not right or wrong."""
    values = [credit for _, credit in credits]
    if average == "macro":
        subjects = [(sum(part), len(part)) for part in by_subject(credits).values()]
        value, interval = sum(right / total for right, total in subjects) / len(subjects), macro_interval(subjects)
    else:
        value = sum(values) / len(values)
        interval = mean_interval(values) if graded else wilson_interval(sum(values), len(values))
    return {"value": value, "low": interval.low, "high": interval.high, "num_items": len(values)}


def by_subject(credits: Credits) -> dict[str, list[float]]:
    subjects: dict[str, list[float]] = {}
    for subject, credit in credits:
        subjects.setdefault(subject, []).append(credit)
    return subjects


def benchmark_figures(task: Task, average: str, credits: Mapping[str, Credits], main: str) -> dict[str, Any]:
    """All figures of a task. credits: by metric; main: the metric that stands for the task.

    "metrics": every metric, averaged as the protocol says. "micro" and "macro": the main one both ways. "subjects",
    "categories", "subsets": the main one of parts, where the task has such. Subjects without questions are left out.
    """
    of_main = credits[main]
    figures: dict[str, Any] = {
        "metrics": {name: figure(values, average, graded=name in GRADED) for name, values in credits.items()},
        "micro": figure(of_main, "micro", graded=main in GRADED),
        "macro": figure(of_main, "macro"),
    }
    if task.categories:
        figures["subjects"] = {
            subject: {**figure([(subject, value) for value in values], "micro"), "category": task.categories[subject]}
            for subject, values in by_subject(of_main).items()
        }
        figures["categories"] = _parts(of_main, average, task.subjects_by_category())
        figures["subsets"] = _parts(of_main, average, task.subsets)
    return figures


def _parts(credits: Credits, average: str, parts: Mapping[str, Iterable[str]]) -> dict[str, Any]:
    figures = {}
    for name, subjects in parts.items():
        wanted = set(subjects)
        if chosen := [pair for pair in credits if pair[0] in wanted]:
            figures[name] = figure(chosen, average)
    return figures

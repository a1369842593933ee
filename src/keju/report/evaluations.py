"""Evaluations of one or several models side by side: report.html to look at, report.md to paste."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from keju.errors import UserError
from keju.records.json_text import parsed
from keju.records.writing import write_text
from keju.report.charts import Bar, bar_chart
from keju.report.page import markdown_environment, page_context, page_environment
from keju.report.stages import verdict

# What makes two results comparable at all, and what should be equal beside it.
ROW = ("task", "protocol", "num_shots", "split", "conversation")
SAME = ("version", "seed", "num_items")
MEASURES = {
    "acc": "accuracy",
    "acc_norm": "accuracy, per character",
    "acc_token": "accuracy, per token",
    "acc_pmi": "accuracy, less the prior",
    "acc_joint": "accuracy, passages solved as a whole",
    "f1": "F1",
    "em": "exact match",
}


@dataclass(frozen=True)
class EvaluatedRun:
    """A folder that eval_pretrain wrote. name: of its model, made different from those of other runs."""

    name: str
    folder: str
    command: str
    results: list[dict[str, Any]]


def write_evaluation_report(folders: Sequence[str | Path], out: str | Path) -> Path:
    """Writes report.html and report.md to the folder `out` and returns the page's path.

    Raises UserError for a folder that holds no results of an evaluation.
    """
    runs = _read_runs([Path(folder) for folder in folders])
    keys = list(dict.fromkeys(_key(result) for run in runs for result in run.results))
    rows = [_row(key, runs) for key in keys]
    differing = [row["title"] for row in rows if row["differs"]]
    context = {"runs": runs, "rows": rows, "differing": differing, "measures": MEASURES}
    environment = page_environment()
    environment.filters["percent"] = _percent
    page = environment.get_template("evaluations.html.j2").render(**context, **page_context())
    plain = markdown_environment()
    plain.filters["percent"] = _percent
    text = plain.get_template("evaluations.md.j2").render(**context, **page_context())
    out = Path(out)
    write_text(out / "report.html", page)
    write_text(out / "report.md", text)
    return out / "report.html"


def _read_runs(folders: Sequence[Path]) -> list[EvaluatedRun]:
    found = []
    for folder in folders:
        path = folder / "results.json"
        content = _parsed(path) if path.is_file() else {}
        if not isinstance(content, dict) or not isinstance(content.get("results"), list):
            raise UserError(f"{folder}: no results.json of an evaluation (eval_pretrain) in this folder")
        args = folder / "args.json"
        command = _parsed(args).get("command", []) if args.is_file() else []
        found.append((str(content["model"]), folder, shlex.join(command), content["results"]))
    names = [Path(model).name or model for model, *_ in found]
    if len(set(names)) < len(names):
        names = [model for model, *_ in found]
    if len(set(names)) < len(names):
        names = [str(folder) for _, folder, *_ in found]
    return [
        EvaluatedRun(name, str(folder), command, results)
        for name, (_, folder, command, results) in zip(names, found, strict=True)
    ]


def _parsed(path: Path) -> Any:
    value = parsed(path.read_text(encoding="utf-8"))
    if isinstance(value, UserError):
        raise UserError(f"{path}: {value}")
    return value


def _key(result: Mapping[str, Any]) -> tuple:
    return tuple(result.get(name) for name in ROW)


def _row(key: tuple, runs: Sequence[EvaluatedRun]) -> dict[str, Any]:
    """A benchmark in one protocol with the results of all runs; None where a run has none."""
    results = [next((result for result in run.results if _key(result) == key), None) for run in runs]
    pairs = [(run, result) for run, result in zip(runs, results, strict=True) if result is not None]
    known = [result for _, result in pairs]
    for result in known:
        judged = result["accuracy"] is not None and result["chance"] is not None
        found = verdict(tuple(result["interval"]), result["chance"]) if judged else ""
        result["verdict"] = {"above chance": "good", "below chance": "bad"}.get(found, "")
    first = known[0]
    title = f"{first['task']} {first['protocol']} {first['num_shots']}-shot"
    counts = sorted({result["num_items"] for result in known})
    return {
        **{name: first[name] for name in ("task", "protocol", "num_shots", "chance")},
        "title": title,
        "anchor": title.replace(" ", "-"),
        "counts": " / ".join(f"{count:,}" for count in counts),
        "measure": MEASURES.get(first["metric"], first["metric"]),
        "results": results,
        "pairs": pairs,
        "differs": any(len({result.get(name) for result in known}) > 1 for name in SAME),
        "charts": _charts([pair for pair in pairs if pair[1]["accuracy"] is not None]),
        "parts": _parts(known, "categories") + _parts(known, "subsets"),
        "subjects": _parts(known, "subjects"),
        # All measures of letters are the same.
        "others": [] if first["scored"] == "letter" else [name for name in first["metrics"] if name != first["metric"]],
    }


def _charts(pairs: Sequence[tuple[EvaluatedRun, Mapping[str, Any]]]) -> list[Markup]:
    """For a benchmark with categories bars of them, the whole first, for each model; otherwise a bar for each model."""
    charts, whole = [], []
    for run, result in pairs:
        parts = {**result.get("categories", {}), **result.get("subsets", {})}
        bars = [Bar(name, part["value"], (part["low"], part["high"])) for name, part in parts.items()]
        alone = Bar("all" if parts else run.name, result["accuracy"], tuple(result["interval"]))
        if parts:
            charts.append(bar_chart([alone, *bars], title=run.name, chance=result["chance"]))
        else:
            whole.append(alone)
    if whole:
        measure = MEASURES.get(pairs[0][1]["metric"], pairs[0][1]["metric"])
        charts.append(bar_chart(whole, title=measure, chance=pairs[0][1]["chance"]))
    return charts


def _parts(results: Sequence[Mapping[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Rows of a table of parts (categories, subjects): the values of all results."""
    names = list(dict.fromkeys(name for result in results for name in result.get(kind, {})))
    rows = []
    for name in names:
        found = [result.get(kind, {}).get(name) for result in results]
        known = next(part for part in found if part is not None)
        scores = [None if part is None else part["value"] for part in found]
        category = known.get("category", "")
        rows.append({"name": name, "category": category, "scores": scores, "num_items": known["num_items"]})
    return rows


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}%"

"""One self-contained HTML page about a whole pipeline: no script, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keju.eval.statistics import wilson_interval
from keju.records.writing import write_text
from keju.report.charts import Bar, bar_chart
from keju.report.page import page_context, page_environment
from keju.report.stages import STAGES, gather, verdict


def write_report(summary: Mapping[str, Any], runs: Mapping[str, Path], out: str | Path) -> Path:
    """Writes the page `out` and returns its path.

    summary: what summary.json of the quickstart holds. Each stage of STAGES has seconds, tokens, tokens_per_second,
    first_loss and last_loss; reward and dpo also heldout_accuracy and heldout_pairs; ppo reward_before, reward_after
    and kl. "data" is {file: rows}, "predictions" {measure: number}, "eval" {"chance": share, model: {"accuracy",
    "interval": [low, high], "num_items", "few_shot": {shots: accuracy}}}. Stages that are missing are shown as "not
    run". runs: the run folder of each stage.
    """
    stages = [gather(key, summary.get(key), runs.get(key)) for key in STAGES]
    evaluations = _evaluations(summary.get("eval") or {})
    page = (
        page_environment()
        .get_template("report.html.j2")
        .render(
            summary=summary,
            stages=stages,
            evaluations=evaluations,
            chance=(summary.get("eval") or {}).get("chance"),
            benchmark=_benchmark_chart(evaluations, (summary.get("eval") or {}).get("chance")),
            highlights=_highlights(stages, evaluations),
            # A second run that reuses finished stages is quick itself; what they took is the honest figure.
            seconds=max(summary.get("seconds") or 0, sum(stage.figures.get("seconds") or 0 for stage in stages)),
            predictions=_numbers(summary.get("predictions") or {}),
            num_rows=_numbers(summary.get("data") or {}),
            **page_context(),
        )
    )
    write_text(out, page)
    return Path(out)


def _evaluations(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the benchmark table, in the order of the summary."""
    chance = results.get("chance")
    rows = []
    for name, result in results.items():
        if not isinstance(result, Mapping) or result.get("accuracy") is None:
            continue
        interval, count = result.get("interval"), result.get("num_items")
        if interval is None and count:
            interval = wilson_interval(result["accuracy"] * count, count)
        interval = tuple(interval) if interval is not None else None
        rows.append(
            {
                "name": STAGES[name].title if name in STAGES else name,
                "accuracy": result["accuracy"],
                "interval": interval,
                "num_items": count,
                "few_shot": result.get("few_shot") or {},
                "verdict": verdict(interval, chance) if chance is not None else "",
            }
        )
    return rows


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in values.items() if isinstance(value, (int, float)) and value is not True}


def _benchmark_chart(evaluations: list[dict[str, Any]], chance: float | None):
    bars = [Bar(row["name"], row["accuracy"], row["interval"]) for row in evaluations]
    return bar_chart(bars, title="Accuracy after each stage, with 95% intervals", chance=chance)


def _highlights(stages, evaluations) -> list[tuple[str, str, str]]:
    """(what, figure, remark): the results that a reader came for."""
    tiles = [(f"{stage.title}: {name}", value, remark) for stage in stages for name, value, remark in stage.results]
    if evaluations:
        best = max(evaluations, key=lambda row: row["accuracy"])
        tiles.append((f"best benchmark accuracy ({best['name']})", f"{best['accuracy']:.1%}", best["verdict"]))
    return tiles

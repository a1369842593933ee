"""Results as a table on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def print_results(summaries: Sequence[dict[str, Any]], title: str, console: Console | None = None) -> None:
    """One line for each result: all metrics, the main one with its 95% interval and marked, against chance."""
    names = list(dict.fromkeys(name for summary in summaries for name in summary["metrics"]))
    table = Table(title=title)
    for heading in ("task", "protocol", "shots", "items"):
        table.add_column(heading, justify="right" if heading in ("shots", "items") else "left")
    for name in (*names, "chance", "seconds"):
        table.add_column(name, justify="right")
    for summary in summaries:
        cells = [_cell(summary, name) for name in names]
        table.add_row(
            summary["task"],
            summary["protocol"],
            str(summary["num_shots"]),
            str(summary["num_items"]),
            *cells,
            f"{summary['chance']:.1%}",
            f"{summary['seconds']:.1f}",
        )
    (console or Console()).print(table)


def _cell(summary: dict[str, Any], name: str) -> str:
    if name not in summary["metrics"]:
        return ""
    metric = summary["metrics"][name]
    if name != summary["metric"]:
        return f"{metric['value']:.1%}"
    # Above chance means: chance lies below the whole interval.
    colour = "green" if metric["low"] > summary["chance"] else "yellow"
    return f"[{colour} bold]{metric['value']:.1%}[/] ({metric['low']:.1%}-{metric['high']:.1%})"

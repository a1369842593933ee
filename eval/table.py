"""Results as a table on the terminal, within 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


def print_results(summaries: Sequence[dict[str, Any]], title: str, console: Console | None = None) -> None:
    """One line for each result: all metrics, the main one marked and with its 95% interval, against chance."""
    names = list(dict.fromkeys(name for summary in summaries for name in summary["metrics"]))
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    for heading in ("task", "protocol"):
        table.add_column(heading, no_wrap=True)
    for heading in ("shots", "items", *names, "95%", "chance"):
        table.add_column(heading, justify="right", no_wrap=True)
    for summary in summaries:
        low, high = summary["interval"]
        table.add_row(
            summary["task"],
            summary["protocol"],
            str(summary["num_shots"]),
            str(summary["num_items"]),
            *(_cell(summary, name) for name in names),
            f"{low:.1%}-{high:.1%}",
            f"{summary['chance']:.1%}",
        )
    (console or Console()).print(table)


def _cell(summary: dict[str, Any], name: str) -> str:
    if name not in summary["metrics"]:
        return ""
    text = f"{summary['metrics'][name]['value']:.1%}"
    if name != summary["metric"]:
        return text
    # Above chance means: chance lies below the whole interval.
    colour = "green" if summary["interval"][0] > summary["chance"] else "yellow"
    return f"[{colour} bold]{text}[/]"

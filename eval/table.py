"""Results as tables on the terminal, within 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


def print_results(summaries: Sequence[dict[str, Any]], title: str, console: Console | None = None) -> None:
    """One line for each result: the main metric with its 95% interval, chance, and the probability of all choices
    together; then categories, where a benchmark has some."""
    console = console or Console()
    table = _table(title, ["task", "protocol"], ["shots", "items", "metric", "score", "95%", "chance", "mass"])
    for summary in summaries:
        table.add_row(
            summary["task"],
            summary["protocol"],
            str(summary["num_shots"]),
            str(summary["num_items"]),
            summary["metric"].removeprefix("acc_"),
            _score(summary),
            "" if summary["interval"] is None else "{:.1%}-{:.1%}".format(*summary["interval"]),
            "" if summary["chance"] is None else f"{summary['chance']:.1%}",
            f"{summary['choice_mass']:.1%}" if "choice_mass" in summary else "",
        )
    console.print(table)
    parts = [
        (summary, {**summary["categories"], **summary["subsets"]}) for summary in summaries if "categories" in summary
    ]
    if not parts:
        return
    names = list(dict.fromkeys(name for _, figures in parts for name in figures))
    table = _table("Categories", ["task", "protocol"], ["shots", *names])
    for summary, figures in parts:
        cells = [f"{figures[name]['value']:.1%}" if name in figures else "" for name in names]
        table.add_row(summary["task"], summary["protocol"], str(summary["num_shots"]), *cells)
    console.print(table)


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    for heading in left:
        table.add_column(heading, no_wrap=True)
    for heading in right:
        table.add_column(heading, justify="right", no_wrap=" " not in heading)
    return table


def _score(summary: dict[str, Any]) -> str:
    if summary["accuracy"] is None:
        return ""
    if summary["chance"] is None:
        return f"[bold]{summary['accuracy']:.1%}[/]"
    # Above chance means: chance lies below the whole interval.
    colour = "green" if summary["interval"][0] > summary["chance"] else "yellow"
    return f"[{colour} bold]{summary['accuracy']:.1%}[/]"

"""What a corpus became, as lines for the terminal; the page beside it has all of it."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from keju.records.reading import iterate_rows

SHOWN_CHARACTERS = 100  # of a text


def show_corpus(console: Console, folder: Path, report: Mapping[str, Any]) -> None:
    """Prints what the folder holds: rows and bytes of each file, one row of each kind, what was changed and dropped.

    report: what is in report.json of a data set.
    """
    table = Table()
    for heading, side in (("file", "left"), ("rows", "right"), ("KiB", "right")):
        table.add_column(heading, justify=side)
    examples, others = {}, dict(report["contents"])
    for pattern, rows in report["rows"].items():
        names = fnmatch.filter(others, pattern)
        table.add_row(pattern, f"{rows:,}", f"{sum(others.pop(name) for name in names) / 1024:,.0f}")
        _, row = next(iterate_rows(folder / names[0]))
        examples.setdefault(tuple(row), f"{pattern}: {json.dumps(shortened(row), ensure_ascii=False)}")  # one of a kind
    for name, size in others.items():
        table.add_row(name, "", f"{size / 1024:,.0f}")
    console.print(f"{folder}:", markup=False, soft_wrap=True)
    console.print(table)
    for line in (*examples.values(), *step_lines(report["steps"])):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def step_lines(steps: list[dict[str, Any]]) -> list[str]:
    """Of the first step, and of those that changed or dropped anything."""
    lines = []
    for step in steps:
        changed = step.get("rows_changed", 0)
        if step["rows_in"] == step["rows_out"] and not changed and step is not steps[0]:
            continue
        note = f", {changed:,} changed" if changed else ""
        lines.append(f"{step['name']}: {step['rows_in']:,} -> {step['rows_out']:,} rows{note}")
        lines += [f"  {change}: {count:,}" for change, count in step.get("changes", {}).items()]
        for change in step.get("shown", ())[:1]:
            old, new = (" ".join(change[name].split()) for name in ("before", "after"))
            lines.append(f"  as {change['where']}: {shortened(old)} -> {shortened(new) or '(nothing)'}")
        for reason, dropped in step["dropped"].items():
            # An example is where a row is, and what it says or what is wrong with it.
            example = dropped["examples"][0].removesuffix(reason).rstrip(": ")
            lines.append(f"  {dropped['rows']:,} dropped, {reason}; as {shortened(example)}")
    return lines


def shortened(value: Any) -> Any:
    """The same with every long text in it cut."""
    if isinstance(value, str):
        return value if len(value) <= SHOWN_CHARACTERS else f"{value[:SHOWN_CHARACTERS]}…"
    if isinstance(value, dict):
        return {name: shortened(inside) for name, inside in value.items()}
    return [shortened(inside) for inside in value] if isinstance(value, list) else value

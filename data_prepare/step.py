"""What one pass over the rows did, counted so that several processes' counts add up to the same as one's."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

EXAMPLES_KEPT = 3


@dataclass
class Step:
    """How many rows went in and came out, and why others did not, with a few of them.

    rows_changed: rows that came out other than they went in.
    changes: what was done inside rows, by name: texts masked, answers removed.
    shown: where a changed row is -> what it said, and what it says now; of the rows as of examples.
    examples: of each reason the examples with the smallest checksums, so that they are the same however the rows were
        divided among processes.
    """

    name: str
    rows_in: int = 0
    rows_out: int = 0
    rows_changed: int = 0
    changes: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    shown: dict[str, tuple[str, str]] = field(default_factory=dict)

    def show_change(self, where: str, change: Callable[[], tuple[str, str]]) -> None:
        """change: gives what a row has said and what it says now; called where that is kept as an example."""
        if len(self.shown) < EXAMPLES_KEPT or _order(where) < max(map(_order, self.shown)):
            self._keep_shown({where: change()})

    def drop(self, reason: str, example: str) -> None:
        self.dropped[reason] += 1
        self._keep(reason, [example])

    def add(self, other: Step) -> None:
        """Count in what another process, or another piece of the data, saw in the same step."""
        assert self.name == other.name, f"{self.name} and {other.name} are different steps"
        self.rows_in += other.rows_in
        self.rows_out += other.rows_out
        self.rows_changed += other.rows_changed
        self.changes.update(other.changes)
        self.dropped.update(other.dropped)
        for reason, examples in other.examples.items():
            self._keep(reason, examples)
        self._keep_shown(other.shown)

    def as_row(self) -> dict[str, Any]:
        """For the report; the same for the same rows, in whatever order they came."""
        dropped = {
            reason: {"rows": count, "examples": self.examples[reason]} for reason, count in _by_count(self.dropped)
        }
        row = {"name": self.name, "rows_in": self.rows_in, "rows_out": self.rows_out}
        if self.rows_changed:
            row["rows_changed"] = self.rows_changed
        if self.changes:
            row["changes"] = dict(_by_count(self.changes))
        if self.shown:
            row["shown"] = [
                {"where": where, "before": old, "after": new} for where, (old, new) in sorted(self.shown.items())
            ]
        return row | {"dropped": dropped}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Step:
        """The step of which `as_row` made `row`, to go on counting after a restart."""
        dropped = row["dropped"]
        return cls(
            row["name"],
            row["rows_in"],
            row["rows_out"],
            row.get("rows_changed", 0),
            Counter(row.get("changes", {})),
            Counter({reason: entry["rows"] for reason, entry in dropped.items()}),
            {reason: list(entry["examples"]) for reason, entry in dropped.items()},
            {entry["where"]: (entry["before"], entry["after"]) for entry in row.get("shown", ())},
        )

    def _keep_shown(self, more: Mapping[str, tuple[str, str]]) -> None:
        both = self.shown | more
        self.shown = {where: both[where] for where in sorted(both, key=_order)[:EXAMPLES_KEPT]}

    def _keep(self, reason: str, examples: Iterable[str]) -> None:
        kept = {*self.examples.get(reason, ()), *examples}
        self.examples[reason] = sorted(kept, key=_order)[:EXAMPLES_KEPT]


def merge(parts: Iterable[Sequence[Step]]) -> list[Step]:
    """The steps of all parts added up, name by name, in the order of the first part."""
    merged: dict[str, Step] = {}
    for steps in parts:
        for step in steps:
            merged.setdefault(step.name, Step(step.name)).add(step)
    return list(merged.values())


def _order(example: str) -> tuple[int, str]:
    return zlib.crc32(example.encode("utf-8", "surrogatepass")), example


def _by_count(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))

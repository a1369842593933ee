"""A data set that is built as a whole, in memory: its rows cleaned, and what is said of them."""

from __future__ import annotations

import tempfile
from typing import Any

from keju.data_prepare.cleaning.cleaner import Cleaner
from keju.data_prepare.cleaning.contamination import write_evaluation_ngrams
from keju.data_prepare.cleaning.settings import CleaningSettings
from keju.data_prepare.corpus import Item
from keju.data_prepare.data_set import DataSet
from keju.data_prepare.pipeline.shards import FileCounts


def clean_rows(data_set: DataSet, cleaning: CleaningSettings, evaluation_sets: list[str]) -> None:
    """Cleans the rows that are records, in place."""
    with tempfile.TemporaryDirectory() as folder:
        if evaluation_sets:
            write_evaluation_ngrams(evaluation_sets, folder)
        cleaner = Cleaner(cleaning, folder if evaluation_sets else None)
        for name, rows in data_set.files.items():
            if is_record(rows[0]):
                items = (Item(row, f"{name}:{line}", group="") for line, row in enumerate(rows, start=1))
                rows[:] = [item.row for item in map(cleaner.clean, items) if isinstance(item, Item)]
    data_set.steps.extend(cleaner.steps)


def is_record(row: dict[str, Any]) -> bool:
    """And no question of a benchmark."""
    return "text" in row or "prompt" in row


def summary(data_set: DataSet) -> dict[str, Any]:
    """What went in, what came out, what was dropped and why."""
    files = {}
    for name, rows in data_set.files.items():
        if is_record(rows[0]):
            files[name] = FileCounts()
            for row in rows:
                files[name].add(row)
    return {
        "rows": {name: len(rows) for name, rows in data_set.files.items()},
        "splits": data_set.splits,
        "missing_wrong_answers": 0,
        "steps": [step.as_row() for step in data_set.steps],
        "files": {name: counts.as_row() for name, counts in files.items()},
    }

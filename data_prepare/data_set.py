"""What a corpus becomes, and where corpora are found.

To add a corpus, write one file `data_prepare/corpora/<name>.py`; its name is what `--corpus` takes. The file has

    VERSION = 1                                          # raise it when the same arguments give other rows
    def source() -> str                                  # which data it reads, with its version
    def build(*, seed, max_items, track) -> DataSet      # raw data -> rows; `track(items, label)` shows progress

`build` must give the same rows for the same seed in every process, and no group of items in two splits
(`splitting.py` does both). The rows are records as `keju.records` reads them, or what a benchmark of `keju.eval` asks.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from keju.data_prepare import corpora
from keju.data_prepare.step import Step
from keju.errors import UserError

Track = Callable[[Iterable, str], Iterable]


@dataclass(frozen=True)
class DataSet:
    """files: file name -> rows. vocabulary_texts: what the vocabulary may see, training text only."""

    files: dict[str, list[dict[str, Any]]]
    vocabulary_texts: list[str]
    splits: dict[str, int]
    steps: list[Step]


def corpus_module(name: str) -> ModuleType:
    """Import `corpora/<name>.py`. Raises UserError with the right names for a wrong one."""
    names = sorted(module.name for module in pkgutil.iter_modules(corpora.__path__))
    if name not in names:
        raise UserError(f"{name!r} is unknown; there are: {', '.join(names)}", option="corpus")
    return importlib.import_module(f"{corpora.__name__}.{name}")

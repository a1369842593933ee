"""Read a whole corpus as the pipeline does, piece by piece, and check what holds for the items of every corpus."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

from keju.data_prepare.corpus import BadRow, Item
from keju.records.formats import detect


def corpus_module(name: str):
    return import_module(f"keju.data_prepare.corpora.{name}")


def read_corpus(name: str, folder: Path, piece_bytes: int = 1 << 26) -> tuple[list[Item], list[BadRow]]:
    """(items, bad rows) in the order of the pieces."""
    corpus = corpus_module(name)
    items, bad = [], []
    for piece in corpus.pieces(folder, piece_bytes):
        for value in corpus.read(folder, piece):
            path, line = re.fullmatch(r"(.+):(\d+)", value.where).groups()
            assert (folder / path).is_file() and int(line) >= 1
            if isinstance(value, BadRow):
                assert value.reason
                bad.append(value)
                continue
            detect(value.row)
            assert value.group
            if "answers" in value.row:
                assert len(value.keys) == len(corpus.WRONG) - 1
            items.append(value)
    return items, bad


def answers(item: Item) -> list[tuple[str, float]]:
    return [(answer["answer"], answer["score"]) for answer in item.row["answers"]]

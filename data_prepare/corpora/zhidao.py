"""Questions with several replies, the accepted one marked: the Baidu Zhidao files of ChineseNlpCorpus, one a domain.

A question none of whose replies was accepted is not used: many of these are advertisements or no answer at all, and
there is nothing to rank them against.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from keju.data_prepare.corpus import BadRow, Item, Piece
from keju.data_prepare.raw_csv import csv_rows
from keju.data_prepare.raw_files import file_pieces, wrong_folder

VERSION = 1
DOWNLOAD = (
    "the links to *zhidao_filter.csv are in https://github.com/SophonPlus/ChineseNlpCorpus"
    " (datasets/*zhidao/intro.ipynb); put the files into one folder"
)
# A reply that was not accepted has 0, as it answers the question at least; then replies to other questions.
WRONG = ((-1, 1), (-2, 1))  # of the same domain, of another domain
COLUMNS = ("title", "question", "reply", "is_best")
ACCEPTED, NOT_ACCEPTED = 1, 0


def pieces(folder: Path, piece_bytes: int) -> list[Piece]:
    """One piece a file, as the replies to a question must not be torn apart."""
    paths = [path for path in folder.glob("*.csv") if path.is_file()]
    if not paths:
        raise wrong_folder(folder, f"*.csv with the columns {','.join(COLUMNS)}", DOWNLOAD)
    return file_pieces(folder, paths)


def read(folder: Path, piece: Piece) -> Iterator[Item | BadRow]:
    """One item a run of rows with one title. If a title comes back, the next item is of the same group."""
    domain = Path(piece.path).stem.removesuffix("_filter")
    rows = (_checked(row) for row in csv_rows(folder, piece, COLUMNS))
    for key, run in groupby(rows, key=lambda row: row if isinstance(row, BadRow) else row[1]["title"]):
        if isinstance(key, BadRow):
            yield key
            continue
        where, first = next(run)
        scores: dict[str, int] = {}
        for row in (first, *(row for _, row in run)):
            scores[row["reply"]] = max(int(row["is_best"]), scores.get(row["reply"], NOT_ACCEPTED))
        if ACCEPTED not in scores.values():
            yield BadRow(where, "none of the replies to this question is marked as best")
            continue
        yield Item(_record(first, scores), where, group=key, source=domain, keys=(domain,))


def _checked(row: tuple[str, dict[str, str]] | BadRow) -> tuple[str, dict[str, str]] | BadRow:
    if isinstance(row, BadRow):
        return row
    where, fields = row
    fields = {name: text.strip() for name, text in fields.items()}
    for name in ("title", "reply"):
        if not fields[name]:
            return BadRow(where, f"the {name} is empty")
    if fields["is_best"] not in ("0", "1"):
        return BadRow(where, f"is_best must be 0 or 1, not {fields['is_best'][:20]!r}")
    return where, fields


def _record(first: dict[str, str], scores: dict[str, int]) -> dict[str, Any]:
    title, body = first["title"], first["question"]
    # The body often says the title again.
    prompt = body if title in body else f"{title}\n{body}" if body else title
    ranked = sorted(scores.items(), key=lambda reply: -reply[1])
    return {"prompt": prompt, "answers": [{"answer": text, "score": score} for text, score in ranked]}

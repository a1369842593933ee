"""What a corpus is: which files its raw data has, and how one of them becomes items.

To add a corpus, write one file `data_prepare/corpora/<name>.py`; its name is what `--corpus` takes. The file has

    VERSION = 1                                # raise it when the same raw data give other items
    DOWNLOAD = "git clone https://..."         # how a person gets the raw data; shown where it is missing
    SIMPLIFY = True                            # only where its texts are in traditional characters
    WRONG = ((0, 2), (-1, 2))                  # wrong answers that are drawn, see below; () for none
    def pieces(folder, piece_bytes) -> list[Piece]      # raises UserError for a folder of something else
    def read(folder, piece) -> Iterator[Item | BadRow]  # the items of one piece, in the order of the file

Pieces are read by several processes, in any order, each without knowing the others: an item must not depend on
another piece. Everything that needs the whole corpus (duplicates, splits, wrong answers) is done afterwards, the same
way for every corpus.

Wrong answers: `WRONG` has (score, count) from near to far. The first are the best answers of other items that share
`keys[0]`; the second of items that share `keys[1]` and not `keys[0]`; ...; the last of items that share no key. All are
of the same split and the same `task`, never of the same group, and never equal to an answer that is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the raw data that one process reads.

    path: of a file, relative to the folder of the corpus, with "/".
    start, end: in bytes, where lines begin; end None: to the end of the file.
    first_line: the number of the line at `start`, counted from 1.
    """

    path: str
    start: int = 0
    end: int | None = None
    first_line: int = 1


@dataclass(frozen=True, slots=True)
class Item:
    """A row and what must be known about it before it becomes a record.

    row: a record as keju.records reads it: {"text"}, {"messages"}, or {"prompt", "prefix"?, "system"?, "answers"} with
        the answers that are known (of which the best is what others get as a wrong answer).
    where: "file:line" in the raw data.
    group: all items of a group are in one split: an idiom, a poem, a question, a chapter.
    source: what the report counts by: a book, a genre, a file.
    task: wrong answers are exchanged within a task only.
    keys: from near to far, what decides which wrong answers are close.
    content: what the prompt says beyond the words that all prompts of the task have; duplicates are recognised by it
        and the best answer. Empty: the whole prompt.
    """

    row: dict[str, Any]
    where: str
    group: str
    source: str = ""
    task: str = ""
    keys: tuple[str, ...] = ()
    content: str = ""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A place in the raw data that cannot be used. reason: what is wrong and, where it is not obvious, what to do."""

    where: str
    reason: str

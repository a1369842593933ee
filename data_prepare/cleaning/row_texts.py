"""The texts of a row in one list, so that every step sees every layout the same way, and the row with other texts."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, NamedTuple

TEXT, PROMPT, ANSWER, SYSTEM, PREFIX = KINDS = ("text", "prompt", "answer", "system", "prefix")
_KIND_OF_FIELD = {"text": TEXT, "prompt": PROMPT, "label": TEXT, "system": SYSTEM, "prefix": PREFIX}
_KIND_OF_ROLE = {"system": SYSTEM, "assistant": ANSWER}
_TEXT_IN = {"answers": "answer", "messages": "content", "prompt": "content"}


class Unusable(NamedTuple):
    """What a step returns instead of a text, or a row, that must not be used. detail: the text, for the report."""

    reason: str
    detail: str = ""


@dataclass(slots=True)
class RowText:
    """A text, what it is in its row, and its place there: a field, and the index in it if the field holds a list."""

    kind: str
    text: str
    field: str
    index: int | None = None
    score: float | None = None

    @property
    def can_go(self) -> bool:
        """Whether the row may be of use without this text."""
        return self.field == "answers" or self.kind in (SYSTEM, PREFIX)


def texts_of(row: dict[str, Any]) -> list[RowText]:
    """Raises ValueError for a row of another layout than {"text"}, {"messages"}, {"prompt", "answers"}."""
    if not row.keys() & {"text", "messages", "prompt"}:
        raise ValueError(f"a row with the fields {', '.join(row)} holds neither text nor messages nor prompt")
    texts = []
    for name, value in row.items():
        if isinstance(value, str):
            if name in _KIND_OF_FIELD:
                texts.append(RowText(_KIND_OF_FIELD[name], value, name))
        elif name == "answers":
            texts += [
                RowText(ANSWER, answer["answer"], name, index, answer["score"]) for index, answer in enumerate(value)
            ]
        elif name in ("messages", "prompt"):
            texts += [
                RowText(_KIND_OF_ROLE.get(turn["role"], PROMPT), turn["content"], name, index)
                for index, turn in enumerate(value)
            ]
    return texts


def with_texts(row: dict[str, Any], texts: list[RowText]) -> dict[str, Any]:
    """A copy of the row with these texts; those of its own that are not among them are left out."""
    alone = {text.field: text.text for text in texts if text.index is None}
    listed: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for text in texts:
        if text.index is not None:
            listed[text.field].append({**row[text.field][text.index], _TEXT_IN[text.field]: text.text})
    new = {}
    for name, value in row.items():
        if name in alone:
            new[name] = alone[name]
        elif name in listed:
            new[name] = listed[name]
        elif not (name in _KIND_OF_FIELD and isinstance(value, str)):
            new[name] = value
    return new

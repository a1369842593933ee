"""The texts of a row in one list, so that every step sees every layout the same way, and the row with other texts."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, NamedTuple

from keju.errors import UserError

TEXT, PROMPT, ANSWER, SYSTEM, PREFIX, REASONING, TOOL = KINDS = (
    *("text", "prompt", "answer", "system", "prefix", "reasoning", "tool"),
)
_KIND_OF_FIELD = {"text": TEXT, "prompt": PROMPT, "label": TEXT, "system": SYSTEM, "prefix": PREFIX}
_KIND_OF_ROLE = {"system": SYSTEM, "assistant": ANSWER, "tool": TOOL}
_TEXT_IN = {"answers": "answer", "messages": "content", "prompt": "content"}
_REASONING_IN = "reasoning_content"


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
        return self.field == "answers" or self.kind in (SYSTEM, PREFIX, REASONING)

    @property
    def place(self) -> tuple[str, int | None, bool]:
        """The same for no two texts of a row."""
        return self.field, self.index, self.kind == REASONING

    @property
    def name(self) -> str:
        """What the object at `index` calls it."""
        return _REASONING_IN if self.kind == REASONING else _TEXT_IN[self.field]


def texts_of(row: dict[str, Any]) -> list[RowText]:
    """All but those of turns that only call tools, or whose tool says nothing.

    Raises UserError for a row of another layout than {"text"}, {"messages"}, {"prompt", "answers"}.
    """
    if not row.keys() & {"text", "messages", "prompt"}:
        raise UserError(f"a row with the fields {', '.join(row)} holds neither text nor messages nor prompt")
    texts = []
    for field, value in row.items():
        if isinstance(value, str):
            if field in _KIND_OF_FIELD:
                texts.append(RowText(_KIND_OF_FIELD[field], value, field))
        elif field in _TEXT_IN:
            for index, item in enumerate(value):
                kind = ANSWER if field == "answers" else _KIND_OF_ROLE.get(item["role"], PROMPT)
                if not _is_silent(item, field):
                    texts.append(RowText(kind, item[_TEXT_IN[field]], field, index, item.get("score")))
                if _REASONING_IN in item:
                    texts.append(RowText(REASONING, item[_REASONING_IN], field, index))
    return texts


def with_texts(row: dict[str, Any], texts: list[RowText]) -> dict[str, Any]:
    """A copy of the row with these texts; those of its own that are not among them are left out."""
    alone = {text.field: text.text for text in texts if text.index is None}
    listed: dict[str, dict[int, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for text in texts:
        if text.index is not None:
            listed[text.field][text.index][text.name] = text.text
    new = {}
    for field, value in row.items():
        if field in alone:
            new[field] = alone[field]
        elif field in listed:
            items = enumerate(value)
            new[field] = [
                {name: held for name, held in item.items() if name != _REASONING_IN} | listed[field][index]
                for index, item in items
                if _is_silent(item, field) or _TEXT_IN[field] in listed[field][index]
            ]
        elif not (field in _KIND_OF_FIELD and isinstance(value, str)):
            new[field] = value
    return new


def _is_silent(item: dict[str, Any], field: str) -> bool:
    """Whether a turn says nothing, and need not: it calls tools, or is of a tool."""
    return field != "answers" and item[_TEXT_IN[field]] == "" and ("tool_calls" in item or item["role"] == "tool")

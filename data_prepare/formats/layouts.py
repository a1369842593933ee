"""Layouts of published data sets that are no records of Keju yet: BELLE, Firefly, MOSS, pCLUE, hh-rlhf, KTO.

What keju.records reads is left to it. As there, a layout is one small function, found by the fields that are there; to
accept another one, write its function and add a line to `LAYOUTS`, or two names to `QUESTIONS`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from keju.records.formats import FORMATS, Row, completion, detect, names_of
from keju.records.record import Answer, RankedRecord, Record


def selected(row: Row) -> list[Record]:
    """{"prompt", "selected", "rejected"}."""
    _filled(row, "selected")
    return [detect({**row, "chosen": row["selected"]})]


def instances(row: Row) -> list[Record]:
    """{"instruction", "instances": [{"input", "output"}, ...]} (seed tasks of BELLE and Self-Instruct)."""
    found = _list_of_objects(row, "instances")
    return [
        detect(
            {"instruction": row["instruction"], "input": instance.get("input"), "output": instance.get("output", "")}
        )
        for instance in found
    ]


def conversation(row: Row) -> list[Record]:
    """{"conversation": [{"human", "assistant"}, ...], "system"?} (Firefly)."""
    turns = []
    for number, pair in enumerate(_list_of_objects(row, "conversation"), start=1):
        if not {"human", "assistant"} <= pair.keys():
            raise ValueError(f'turn {number} of "conversation" needs "human" and "assistant"')
        turns += [{"role": "user", "content": pair["human"]}, {"role": "assistant", "content": pair["assistant"]}]
    return [detect({"messages": turns, "system": row.get("system")})]


def moss(row: Row) -> list[Record]:
    """{"chat": {"turn_1": {"Human", "MOSS", "Commands"?, ...}, ...}} (MOSS-003)."""
    turns = []
    if not isinstance(row["chat"], dict):
        raise ValueError('"chat" must be an object of turns')
    for number, turn in enumerate(row["chat"].values(), start=1):
        if not isinstance(turn, dict) or not all(isinstance(turn.get(who), str) for who in ("Human", "MOSS")):
            raise ValueError(f'turn {number} of "chat" needs "Human" and "MOSS"')
        if _spoken(str(turn.get("Commands", ""))) not in ("", "None"):
            raise ValueError(f'turn {number} of "chat" calls a tool, which no format of Keju holds')
        turns += [{"role": "user", "content": _spoken(turn["Human"])}]
        turns += [{"role": "assistant", "content": _spoken(turn["MOSS"])}]
    return [detect({"messages": turns})]


def kto(row: Row) -> list[Record]:
    """{"prompt", "completion", "label": true or false}: an answer of score 1 or 0 (TRL)."""
    chat = completion(row)
    return [RankedRecord(chat.messages[:-1], (Answer(chat.messages[-1].content, float(row["label"])),))]


LAYOUTS: tuple[tuple[frozenset[str], Callable[[Row], list[Record]]], ...] = (
    (frozenset({"prompt", "selected", "rejected"}), selected),
    (frozenset({"instruction", "instances"}), instances),
    (frozenset({"conversation"}), conversation),
    (frozenset({"chat"}), moss),
)
# Fields that hold a question and its answer.
QUESTIONS = (
    ("instruction", "response"),
    ("question", "std_answer"),
    ("question", "answer"),
    ("prompt", "response"),
    ("prompt", "answer"),
    ("prompt", "output"),
    ("query", "response"),
    ("input", "target"),
    ("input", "output"),
)
# The least fields of every layout, by which the header of a table is known.
KNOWN_FIELDS = (*(fields for fields, _ in LAYOUTS), *(fields for fields, _ in FORMATS), *map(frozenset, QUESTIONS))
EXPECTED = "Expected " + ", or ".join(dict.fromkeys("+".join(f'"{name}"' for name in sorted(f)) for f in KNOWN_FIELDS))


def is_kto(value: Any) -> bool:
    """Whether this is an answer that is good or bad by itself, of which several rows may have the same prompt."""
    return isinstance(value, dict) and isinstance(value.get("label"), bool) and {"prompt", "completion"} <= value.keys()


def prompt_key(value: Any) -> str | None:
    """What the rows of one KTO prompt share; None for a row of another layout."""
    if not is_kto(value):
        return None
    try:
        return json.dumps([value["prompt"], value.get("system")], sort_keys=True)
    except RecursionError:  # no prompt of any layout is so deeply nested
        return None


def records_of(value: Any) -> list[Record]:
    """The records of one JSON value. Raises ValueError that says what is wrong, without the place."""
    if isinstance(value, list):
        return [_alternating(value)]
    if not isinstance(value, dict):
        return [detect(value)]
    row = {name: field for name, field in value.items() if field is not None}
    if is_kto(row):
        return kto(row)
    for fields, parse in LAYOUTS:
        if fields <= row.keys():
            return parse(row)
    if row.keys() & {"chosen"} and not row.keys() & {"prompt", "conversations", "messages", "instruction"}:
        row |= {name: _dialogue(row[name]) for name in ("chosen", "rejected") if name in row}
    if not any(fields <= row.keys() for fields, _ in FORMATS if len(fields) > 1 or not fields & {"prompt"}):
        for question, answer in QUESTIONS:
            if {question, answer} <= row.keys():
                return [_answered(row, question, answer)]
        if not row.keys() & {"prompt"}:
            raise ValueError(f"fields {names_of(row)} are no known format. {EXPECTED}")
    return [detect(row)]


def _answered(row: Row, question: str, answer: str) -> Record:
    asked = _filled(row, question)
    if answer == "std_answer" and row[answer] == "":  # BELLE's evaluation set asks for much that has no one answer
        return detect({"prompt": [{"role": "user", "content": asked}]})
    others = {name: row[name] for name in ("system", "history") if name in row}
    if question == "instruction":  # Dolly
        others["input"] = row.get("input", row.get("context", ""))
    return detect({"instruction": asked, "output": _filled(row, answer), **others})


def _filled(row: Row, field: str) -> str:
    if not isinstance(row[field], str):
        raise ValueError(f'"{field}" must be a string')
    if not row[field].strip():
        raise ValueError(f'"{field}" is empty')
    return row[field]


def _alternating(turns: list[Any]) -> Record:
    """[question, answer, question, ...] (MOSS-RLHF); one that ends with a question is a prompt."""
    roles = ("user", "assistant")
    messages = [{"role": roles[number % 2], "content": turn} for number, turn in enumerate(turns)]
    return detect({"prompt" if len(turns) % 2 else "messages": messages})


def _dialogue(text: Any) -> Any:
    """Messages of a text "\\n\\nHuman: ...\\n\\nAssistant: ..." (hh-rlhf); anything else as it is."""
    if not isinstance(text, str) or not text.lstrip().startswith("Human:"):
        return text
    parts = re.split(r"(?:^|\n\n)(Human|Assistant): ?", "\n\n" + text.lstrip())[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[who], "content": said} for who, said in zip(parts[::2], parts[1::2], strict=True)]


def _spoken(text: str) -> str:
    """What is said between MOSS's marks "<|Human|>: " and "<eoh>"."""
    return re.sub(r"^\s*<\|[\w ]+\|>:\s*|\s*<eo[hmtcr]>\s*$", "", text).strip()


def _list_of_objects(row: Row, field: str) -> list[Row]:
    value = row[field]
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        raise ValueError(f'"{field}" must be a list of objects, and not empty')
    return value

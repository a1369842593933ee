"""Layouts of published data sets that are no records of Keju yet: BELLE, Firefly, MOSS, pCLUE, hh-rlhf.

What keju.records reads is left to it. As there, a layout is one small function, found by the fields that are there; to
accept another one, write its function and add a line to `LAYOUTS`, or two names to `QUESTIONS`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from keju.errors import UserError
from keju.records.formats import FORMATS, MARKS, MEANINGFUL, REJECTED, Row, detect, names_of
from keju.records.record import Record
from keju.records.values import present, says_nothing


def selected(row: Row) -> list[Record]:
    """{"prompt", "selected", "rejected"}."""
    _filled(row, "selected")
    return [detect({**row, "chosen": row["selected"]})]


def instances(row: Row) -> list[Record]:
    """{"instruction", "instances": [{"input", "output"}, ...]} (seed tasks of BELLE and Self-Instruct)."""
    found = _list_of_objects(row, "instances")
    return [
        detect(
            {
                **_beside(row),
                "instruction": row["instruction"],
                "input": instance.get("input"),
                "output": instance.get("output", ""),
            }
        )
        for instance in found
    ]


def conversation(row: Row) -> list[Record]:
    """{"conversation": [{"human", "assistant"}, ...], "system"?} (Firefly)."""
    turns = []
    for number, pair in enumerate(_list_of_objects(row, "conversation"), start=1):
        if not {"human", "assistant"} <= pair.keys():
            raise UserError(f'turn {number} of "conversation" needs "human" and "assistant"')
        turns += [{"role": "user", "content": pair["human"]}, {"role": "assistant", "content": pair["assistant"]}]
    return [detect({**_beside(row), "messages": turns})]


def moss(row: Row) -> list[Record]:
    """{"meta_instruction"?, "chat": {"turn_1": {"Human", "MOSS", "Commands"?, ...}, ...}} (MOSS-003)."""
    turns = []
    if not isinstance(row["chat"], dict):
        raise UserError('"chat" must be an object of turns')
    for number, turn in enumerate(row["chat"].values(), start=1):
        if not isinstance(turn, dict) or not all(isinstance(turn.get(who), str) for who in ("Human", "MOSS")):
            raise UserError(f'turn {number} of "chat" needs "Human" and "MOSS"')
        if _spoken(str(turn.get("Commands", ""))) not in ("", "None"):
            raise UserError(f'turn {number} of "chat" calls a tool, which no format of Keju holds')
        turns += [{"role": "user", "content": _spoken(turn["Human"])}]
        turns += [{"role": "assistant", "content": _spoken(turn["MOSS"])}]
    if not says_nothing(row.get("meta_instruction")):
        turns.insert(0, {"role": "system", "content": _filled(row, "meta_instruction").strip()})
    return [detect({**_beside(row), "messages": turns})]


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
    ("input", "content"),
)
# Where rows have turns, answers, and what comes before these.
_TURNS = ("messages", "conversations", "conversation")
_ANSWERS = ("completion", *dict.fromkeys(answer for _, answer in QUESTIONS))
_ASKING = ("prompt", "system", "system_prompt", "history", "tools", "context", *(question for question, _ in QUESTIONS))
# The least fields of every layout, by which the header of a table is known.
KNOWN_FIELDS = (*(fields for fields, _ in LAYOUTS), *(fields for fields, *_ in FORMATS), *map(frozenset, QUESTIONS))
EXPECTED = "Expected " + ", or ".join(dict.fromkeys("+".join(f'"{name}"' for name in sorted(f)) for f in KNOWN_FIELDS))


def prompt_key(value: Any) -> str | None:
    """What the rows of one prompt share whose answers are good or bad by themselves (KTO); None for any other row."""
    if not isinstance(value, dict) or all(says_nothing(value.get(name)) for name in MARKS):
        return None
    turns = {name: value[name][:-1] for name in _TURNS if isinstance(value.get(name), list)}
    if not turns and all(says_nothing(value.get(name)) for name in _ANSWERS):
        return None
    try:
        return json.dumps([turns, *(value.get(name) for name in _ASKING)], sort_keys=True, default=str)
    except RecursionError:  # no prompt of any layout is so deeply nested
        return None


def records_of(value: Any) -> list[Record]:
    """The records of one JSON value. Raises UserError that says what is wrong, without the place."""
    if isinstance(value, list):
        return [_alternating(value)]
    if not isinstance(value, dict):
        return [detect(value)]
    row = present(value)
    for fields, parse in LAYOUTS:
        if fields <= row.keys():
            return parse(row)
    if row.keys() & {"chosen"} and not row.keys() & {"prompt", "conversations", "messages", "instruction"}:
        row |= {name: _dialogue(row[name]) for name in ("chosen", "rejected") if name in row}
    if not any(fields <= row.keys() for fields, *_ in FORMATS if len(fields) > 1 or not fields & {"prompt"}):
        for question, answer in QUESTIONS:
            if {question, answer} <= row.keys():
                return [_answered(row, question, answer)]
        if not row.keys() & {"prompt"}:
            raise UserError(f"fields {names_of(row)} are no known format. {EXPECTED}")
    return [detect(row)]


def _answered(row: Row, question: str, answer: str) -> Record:
    asked = _filled(row, question)
    if answer == "std_answer" and row[answer] == "":  # BELLE's evaluation set asks for much that has no one answer
        return detect({"prompt": [{"role": "user", "content": asked}]})
    others = {**_beside(row), "instruction": asked}
    if question == "instruction":  # Dolly
        others["input"] = row.get("input", row.get("context", ""))
    rejected = next((name for name in REJECTED if not says_nothing(row.get(name))), None)
    if rejected is not None:  # ms-swift
        worse = others.pop(rejected)
        return detect({**others, "chosen": _filled(row, answer), "rejected": worse})
    return detect({**others, "output": _filled(row, answer)})


def _beside(row: Row) -> Row:
    """The fields of a row that say more about its turns and answers."""
    return {name: row[name] for name in row if name in MEANINGFUL}


def _filled(row: Row, field: str) -> str:
    if not isinstance(row[field], str):
        raise UserError(f'"{field}" must be a string')
    if not row[field].strip():
        raise UserError(f'"{field}" is empty')
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
        raise UserError(f'"{field}" must be a list of objects, and not empty')
    return value

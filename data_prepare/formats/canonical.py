"""A record as the row that keju.records reads back as the same record, and what keeps its relatives together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from keju.data_prepare.formats.tables import UNPROMPTED
from keju.records.record import Answer, ChatRecord, Message, RankedRecord, Record, TextRecord
from keju.records.turns import turn_of

Row = dict[str, Any]


def row_of(record: Record, prompt_alone: bool = False) -> Row:
    """{"text"}, {"prompt", "label"}, {"messages", "tools"?}, or {"prompt", "prefix"?, "system"?, "tools"?, "answers"}.

    prompt_alone: the record is no more than a prompt, which is written {"prompt": text or messages}.
    """
    if isinstance(record, TextRecord):
        if record.label:
            return {"prompt": record.text.removesuffix(record.label), "label": record.label}
        return {"prompt" if prompt_alone else "text": record.text}
    if isinstance(record, ChatRecord):
        alone = prompt_alone or all(message.role != "assistant" for message in record.messages)
        return {"prompt" if alone else "messages": turns(record.messages), **tools_field(record.tools)}
    row: Row = plain_context(record.messages) or {"prompt": turns(record.messages)}
    if record.prefix:
        row["prefix"] = record.prefix
    return {**row, **tools_field(record.tools), "answers": [_answer(answer) for answer in record.answers]}


def turns(messages: Sequence[Message]) -> list[Row]:
    return [turn_of(message) for message in messages]


def tools_field(tools: str) -> Row:
    return {"tools": json.loads(tools)} if tools else {}


def _answer(answer: Answer) -> Row:
    row: Row = {"answer": answer.text, "score": _number(answer.score)}
    if answer.is_good is not None:
        row["is_good"] = answer.is_good
    if answer.reasoning:
        row["reasoning_content"] = answer.reasoning
    return row


def plain_context(messages: Sequence[Message]) -> Row | None:
    """{"prompt": str, "system"?: str} of a context with one question, None for another one."""
    *system, question = messages
    if any(turn_of(message).keys() > {"role", "content"} for message in messages):
        return None
    if question.role != "user" or [message.role for message in system] not in ([], ["system"]):
        return None
    return {"prompt": question.content, **({"system": system[0].content} if system else {})}


def group_of(record: Record) -> str:
    """A hash that records of one prompt (the first user turn) share; of a text, the text itself."""
    if isinstance(record, TextRecord):
        text = record.text.removesuffix(record.label) or record.text
    else:
        text = next((message.content for message in record.messages if message.role == "user"), "")
        if isinstance(record, RankedRecord) and text == UNPROMPTED:
            text = record.best.text
    return hashlib.blake2b(text.strip().encode(), digest_size=10).hexdigest()


def _number(score: float) -> float:
    """Whole numbers without ".0", as people write them."""
    return int(score) if float(score).is_integer() and abs(score) < 1e15 else score

"""The texts of a row, whichever kind of record it is."""

from __future__ import annotations

import json
from typing import Any

KINDS = ("pretrain", "ranked", "chat", "prompts")  # the beginnings of file names
_KIND_OF_FIELD = {"text": "pretrain", "label": "pretrain", "answers": "ranked", "messages": "chat"}


def kind_of(row: dict[str, Any]) -> str:
    for field, kind in _KIND_OF_FIELD.items():
        if field in row:
            return kind
    return "prompts"


def best_answer(row: dict[str, Any]) -> str:
    """The answer with the highest score, the first of them in a tie; one marked as bad only where all are."""
    return max(row["answers"], key=lambda answer: (answer.get("is_good") is not False, answer["score"]))["answer"]


def context_of(row: dict[str, Any]) -> str:
    """What answers of the row answer, as one text; empty for a plain text."""
    turns = row["messages"] if "messages" in row else row.get("prompt", "")
    if isinstance(turns, str):
        return turns
    return "\n".join(turn["content"] for turn in turns if turn["role"] == "user")


def reply_of(row: dict[str, Any]) -> str:
    """What is learned from the row: its text, its best answer, or what the assistant says; nothing from a prompt."""
    if "text" in row or "label" in row:
        return row.get("text", "") + row.get("label", "")
    if "answers" in row:
        return best_answer(row)
    if "messages" not in row:
        return ""
    return "\n".join(_said(turn) for turn in row["messages"] if turn["role"] == "assistant")


def _said(turn: dict[str, Any]) -> str:
    """What a turn says, thinks and calls."""
    calls = [json.dumps(turn["tool_calls"], ensure_ascii=False)] if "tool_calls" in turn else []
    return "\n".join([turn["content"], *filter(None, [turn.get("reasoning_content")]), *calls])


def texts_of(row: dict[str, Any]) -> list[str]:
    """The context first, then all that answers it."""
    if "text" in row:
        return [row["text"]]
    answers = [answer["answer"] for answer in row.get("answers", ())]
    answers += [turn["content"] for turn in row.get("messages", ()) if turn["role"] == "assistant"]
    return [context_of(row) + row.get("label", ""), *answers]


SHORTEST_ANSWER = 5  # characters; in shorter ones ("yes", "positive") there is nothing to learn by heart


def kept_apart(row: dict[str, Any]) -> list[tuple[int, str]]:
    """The texts that no two splits may share, each with its number in `texts_of`: all but very short answers."""
    texts = enumerate(texts_of(row))
    return [(number, text) for number, text in texts if number == 0 or len(text) >= SHORTEST_ANSWER]

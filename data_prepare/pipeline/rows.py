"""The texts of a row, whichever kind of record it is."""

from __future__ import annotations

from typing import Any

KINDS = ("pretrain", "ranked", "chat")  # the beginnings of file names


def kind_of(row: dict[str, Any]) -> str:
    if "text" in row:
        return "pretrain"
    return "ranked" if "answers" in row else "chat"


def best_answer(row: dict[str, Any]) -> str:
    """The answer with the highest score, the first of them in a tie."""
    return max(row["answers"], key=lambda answer: answer["score"])["answer"]


def context_of(row: dict[str, Any]) -> str:
    """What answers of the row answer, as one text; empty for a plain text."""
    turns = row["messages"] if "messages" in row else row.get("prompt", "")
    if isinstance(turns, str):
        return turns
    return "\n".join(turn["content"] for turn in turns if turn["role"] == "user")


def reply_of(row: dict[str, Any]) -> str:
    """What is learned from the row: its text, its best answer, or what the assistant says."""
    if "text" in row:
        return row["text"]
    if "answers" in row:
        return best_answer(row)
    return "\n".join(turn["content"] for turn in row["messages"] if turn["role"] == "assistant")


def texts_of(row: dict[str, Any]) -> list[str]:
    """The texts that no two splits may share: the context first, then all that answers it."""
    if "text" in row:
        return [row["text"]]
    if "answers" in row:
        return [context_of(row), *(answer["answer"] for answer in row["answers"])]
    return [context_of(row), *(turn["content"] for turn in row["messages"] if turn["role"] == "assistant")]

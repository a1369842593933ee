"""Turns of conversations, written {"role", "content"} or {"from", "value"}, as messages.

A field of a turn that some format gives a meaning to is read or refused, never ignored.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import lru_cache
from typing import Any

from keju.errors import UserError
from keju.records.record import ROLES, Message
from keju.records.tools import calls_text, joined_calls, name_of_call
from keju.records.values import filled, is_blank, kind_of, listed, number, present, says_nothing, string, truth

CALL = "call"  # a turn that is nothing but calls, as LLaMA-Factory and ms-swift write them
SPEAKERS = {role: role for role in ROLES} | {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "developer": "system",
    "observation": "tool",
    "tool_response": "tool",
    "function": "tool",
    "ipython": "tool",
    "function_call": CALL,
    "tool_call": CALL,
}
REASONING = ("reasoning_content", "reasoning", "thinking")
# Kinds of what is no text, as fields of rows and turns.
MEDIA = ("images", "image", "videos", "video", "audios", "audio")
_FLAGS = {"loss": True, "train": True, "training": True, "masked": False}  # name -> what it says of a trained turn
_PART = "span by span; only whole turns can be left out of the loss"
_REFUSED = {
    "mask": 'means "trained" in some formats and "not trained" in others; write "loss": true or false instead',
    "training_detail": f"trains {_PART}",
    "train_detail": f"trains {_PART}",
    "loss_scale": 'scales a loss in ways of its own; write "weight", a number, instead',
    "channel": 'is not known; write "reasoning_content" for what is thought, "content" for what is said',
    "recipient": 'is not known; write "tool_calls"',
    "refusal": 'is not read; write it as "content"',
    "prefix": "is not known in a turn",
    **dict.fromkeys(MEDIA, "cannot be learned: only text is"),
    **dict.fromkeys(("thought", "thoughts", "cot"), 'is not known; write "reasoning_content"'),
}
# Whatever else says which turns are learned
_OTHER_FLAG = re.compile(
    r"(?:.*_)?(?:train|trained|training|trainable|loss|mask|masked|masks|learn|learned|weights?)(?:_.*)?"
)


def turns_of(value: Any, field: str) -> tuple[Message, ...]:
    """The messages of a list of turns, without empty system turns; calls in turns of their own join the assistant's.

    Raises UserError that names the turn.
    """
    if not listed(value, f'"{field}"'):
        raise UserError(f'"{field}" is empty')
    messages: list[Message] = []
    for place, turn in enumerate(value, start=1):
        name = f'turn {place} of "{field}"'
        role, message = _message(turn, name, messages)
        if message.role == "system" and not message.content.strip():
            continue
        if role == CALL and messages and messages[-1].role == "assistant":
            before = messages[-1]
            if before.weight != message.weight:
                raise UserError(f"{name} has another weight than the turn before it, of which it is a part")
            if before.reasoning and message.reasoning:
                raise UserError(f"{name} and the turn before it, of which it is a part, both have a reasoning")
            calls = joined_calls(before.tool_calls, message.tool_calls)
            reasoning = before.reasoning or message.reasoning
            messages[-1] = replace(before, tool_calls=calls, reasoning=reasoning)
        else:
            messages.append(message)
    if not messages:
        raise UserError(f'"{field}" is empty')
    return tuple(messages)


def turn_of(message: Message) -> dict[str, Any]:
    """The turn that `turns_of` reads back as this message."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        turn["reasoning_content"] = message.reasoning
    if message.tool_calls:
        turn["tool_calls"] = json.loads(message.tool_calls)
    if message.name:
        turn["name"] = message.name
    if message.weight != 1:
        turn["weight"] = int(message.weight) if message.weight.is_integer() else message.weight
    return turn


def reasoning_of(row: dict[str, Any], name: str) -> str:
    """What was thought, from whichever field has it; "" for nothing. name: " of turn 2 ...", "" for a row."""
    found = {field: row[field] for field in REASONING if not is_blank(row.get(field))}
    texts = {string(text, f'"{field}"{name}') for field, text in found.items()}
    if len(texts) > 1:
        raise UserError(f"{' and '.join(map(repr, found))}{name} differ")
    return next((text for text in texts if text.strip()), "")


def _message(turn: Any, name: str, before: list[Message]) -> tuple[str, Message]:
    """(what SPEAKERS says of the speaker, the message). before: the messages of the turns before it."""
    if not isinstance(turn, dict):
        raise UserError(f"{name} must be an object, found {kind_of(turn)}")
    turn = present(turn)
    speaker = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    calls = {field: turn[field] for field in ("tool_calls", "function_call") if not says_nothing(turn.get(field))}
    if speaker is None or (content is None and not calls):
        raise UserError(f'{name} needs "role" and "content" (or "from" and "value")')
    role = SPEAKERS.get(speaker.strip().lower()) if isinstance(speaker, str) else None
    if role is None:
        raise UserError(f"{name} has the unknown role {speaker!r}; known are {', '.join(SPEAKERS)}")
    for field, value in turn.items():
        if (why := _refusal(field)) and not says_nothing(value):
            raise UserError(f'{name}: "{field}" {why}')
    weight = _weight(turn, name, role)
    reasoning = reasoning_of(turn, f" of {name}")
    if role == CALL:
        content, calls = "", {"content": content, **calls}
    elif isinstance(content, list):
        content, thought = _joined(content, name)
        if thought and reasoning:
            raise UserError(f"{name} has its reasoning twice")
        reasoning = reasoning or thought
    if len(calls) > 1:
        raise UserError(f"{name} has its calls twice")
    tool_calls = calls_text(next(iter(calls.values())), name) if calls else ""
    if role == CALL and not tool_calls:
        raise UserError(f"{name} has no call")
    content = "" if content is None else string(content, name)
    role, said = ("assistant" if role == CALL else role), role
    if not tool_calls and role not in ("tool", "system"):
        filled(content, name)
    if role != "assistant" and (reasoning or tool_calls):
        raise UserError(f"{name} is no turn of an assistant, but thinks or calls tools")
    tool = string(turn.get("name", ""), f'"name" of {name}')
    if "tool_call_id" in turn:
        tool = _answered_tool(turn["tool_call_id"], tool, name, before)
    return said, Message(role, content, reasoning, tool_calls, tool, weight)


@lru_cache(maxsize=256)  # asked of every field of every turn
def _refusal(field: str) -> str:
    """Why a field of a turn is not read, "" for others."""
    if field in _REFUSED:
        return _REFUSED[field]
    if field not in (*_FLAGS, "weight") and _OTHER_FLAG.fullmatch(field.lower()):
        return 'is not known; write "loss": true or false, or "weight", a number'
    return ""


def _answered_tool(identity: Any, tool: str, name: str, before: list[Message]) -> str:
    """The name of the tool whose call a turn answers."""
    calls = next((message.tool_calls for message in reversed(before) if message.role == "assistant"), "")
    called = name_of_call(calls, string(identity, f'"tool_call_id" of {name}')) if calls else ""
    if called is None:
        raise UserError(f"{name} answers the call {identity!r}, which the assistant has not made")
    if tool and called and tool != called:
        raise UserError(f"{name} is named {tool!r}, but answers a call of {called!r}")
    return tool or called


def _joined(parts: list[Any], name: str) -> tuple[str, str]:
    """(the text, what is thought) of a content that is given as parts."""
    texts, thoughts = [], []
    for part in parts:
        if isinstance(part, str):
            texts.append(string(part, name))
            continue
        part = present(part) if isinstance(part, dict) else {}
        kind = part.get("type", "text" if "text" in part else None)
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(string(part["text"], name))
        elif kind in ("thinking", "reasoning") and isinstance(part.get(kind, part.get("text")), str):
            thoughts.append(string(part.get(kind, part.get("text")), name))
        else:
            raise UserError(f"{name} has a part of the type {kind!r}; only text can be learned")
    return "".join(texts), "".join(thoughts)


def _weight(turn: dict[str, Any], name: str, role: str) -> float:
    """Of a turn in the loss, from "weight" and the flags of all formats, which must not contradict each other."""
    weight = None
    if "weight" in turn:
        field = f'"weight" of {name}'
        weight = float(turn["weight"]) if isinstance(turn["weight"], bool) else number(turn["weight"], field)
        if weight < 0:
            raise UserError(f"{field} is below 0")
    flags = {
        truth(turn[field], f'"{field}" of {name}') == trained
        for field, trained in _FLAGS.items()
        if not says_nothing(turn.get(field))
    }
    if len(flags) > 1 or (flags and weight is not None and (weight > 0) not in flags):
        raise UserError(f"{name} is both trained and not: its marks contradict each other")
    if role not in ("assistant", CALL):
        if weight or True in flags:
            raise UserError(f"{name} is to be trained, but only turns of the assistant are")
        return 1.0
    return weight if weight is not None else float(True in flags or not flags)

"""Field layouts of JSON records: one small function a layout, `detect` picks by the fields that are there.

Every function takes a JSON object without its null fields and returns a record; what is wrong is said by a ValueError
without the place, which the reader adds. To accept another layout, write its function and add a line to `FORMATS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from keju.records.record import ROLES, Answer, ChatRecord, Message, RankedRecord, Record, TextRecord

Row = dict[str, Any]

SPEAKERS = {role: role for role in ROLES} | {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "observation": "tool",
}


def ranked(row: Row) -> RankedRecord:
    """{"prompt": str or messages, "prefix"?, "system"?, "answers": [{"answer": str, "score": number}, ...]}."""
    answers = _list(row, "answers")
    if not answers:
        raise ValueError('"answers" is empty')
    scored = tuple(_answer(answer, f'answer {number} of "answers"') for number, answer in enumerate(answers, start=1))
    return RankedRecord(_context(row), scored, prefix=_text(row, "prefix") if "prefix" in row else "")


def preference(row: Row) -> RankedRecord:
    """{"prompt"|"conversations"|"instruction", "chosen", "rejected"}: texts, turns, or whole conversations (TRL)."""
    chosen_context, chosen = _reply(row, "chosen")
    rejected_context, rejected = _reply(row, "rejected")
    if chosen_context != rejected_context:
        raise ValueError('"chosen" and "rejected" do not answer the same conversation')
    context = _ending_with_user(_with_system(row, chosen_context), "chosen") if chosen_context else _context(row)
    return RankedRecord(context, (Answer(chosen, 1.0), Answer(rejected, 0.0)))


def alpaca(row: Row) -> ChatRecord | RankedRecord:
    """{"instruction", "input"?, "output", "system"?, "history"?}; a list as "output" holds answers, best first."""
    context = _context(row)
    if isinstance(row["output"], list):
        outputs = [_filled(text, f'answer {number} of "output"') for number, text in enumerate(row["output"], start=1)]
        if not outputs:
            raise ValueError('"output" is empty')
        return RankedRecord(context, tuple(Answer(text, float(-rank)) for rank, text in enumerate(outputs)))
    return ChatRecord((*context, Message("assistant", _filled(_text(row, "output"), '"output"'))))


def completion(row: Row) -> ChatRecord:
    """{"prompt": str or messages, "completion": str or one assistant turn} (TRL)."""
    context, reply = _reply(row, "completion")
    if context:
        raise ValueError('"completion" has more than one turn')
    return ChatRecord((*_context(row), Message("assistant", reply)))


def chat(row: Row) -> ChatRecord:
    """{"messages": [{"role", "content"}, ...], "system"?}."""
    return _conversation(row, "messages")


def sharegpt(row: Row) -> ChatRecord:
    """{"conversations": [{"from", "value"}, ...], "system"?}."""
    return _conversation(row, "conversations")


def text(row: Row) -> TextRecord:
    """{"text": str}."""
    return TextRecord(_filled(_text(row, "text"), '"text"'))


def prompt(row: Row) -> TextRecord | ChatRecord:
    """{"prompt": str, "label"?: str}: a text, continued by its label; or {"prompt": messages}: a prompt alone."""
    # Reading only the prompt of a record that has an answer as well would train on the wrong thing without a word.
    for field in ("answer", "response", "output", "chosen", "selected", "rejected"):
        if field in row:
            raise ValueError(f'"prompt" with "{field}" is no known format. {EXPECTED}')
    if isinstance(row["prompt"], list):
        return ChatRecord(_context(row))
    label = _text(row, "label") if "label" in row else ""
    return TextRecord(_filled(_text(row, "prompt") + label, '"prompt"'), label=label)


# The first line whose fields are all there wins, so that fields that tell more come first.
FORMATS: tuple[tuple[frozenset[str], Callable[[Row], Record]], ...] = (
    (frozenset({"answers"}), ranked),
    (frozenset({"chosen", "rejected"}), preference),
    (frozenset({"instruction", "output"}), alpaca),
    (frozenset({"prompt", "completion"}), completion),
    (frozenset({"messages"}), chat),
    (frozenset({"conversations"}), sharegpt),
    (frozenset({"text"}), text),
    (frozenset({"prompt"}), prompt),
)
EXPECTED = "Expected " + ", or ".join("+".join(f'"{name}"' for name in sorted(fields)) for fields, _ in FORMATS)


def detect(value: Any) -> Record:
    """Turn one JSON value into a record. Raises ValueError that says what is wrong, without the place."""
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, found {_kind(value)}")
    row = {name: field for name, field in value.items() if field is not None}
    for fields, parse in FORMATS:
        if fields <= row.keys():
            return parse(row)
    raise ValueError(f"fields {names_of(row)} are no known format. {EXPECTED}")


def names_of(row: Row) -> str:
    """The first fields of an object for a message of one line: line ends and half surrogate pairs are escaped."""
    return ", ".join(f'"{repr(name[:40])[1:-1]}"' for name in list(row)[:8]) or "none"


def _context(row: Row) -> tuple[Message, ...]:
    """System turn, history and question, from whichever fields a layout has for them."""
    turns = _history(row) if "history" in row else ()
    field = next((name for name in ("prompt", "conversations", "messages", "instruction") if name in row), None)
    if field is None:
        raise ValueError('"prompt" is missing')
    if isinstance(row[field], list):
        return _ending_with_user(_with_system(row, (*turns, *_turns(row, field))), field)
    question = _text(row, field)
    if field == "instruction" and row.get("input", "") != "":
        question = "\n".join(part for part in (question, _text(row, "input")) if part)
    return _with_system(row, (*turns, Message("user", _filled(question, f'"{field}"'))))


def _history(row: Row) -> tuple[Message, ...]:
    """Earlier turns written as pairs [question, answer]."""
    turns: list[Message] = []
    for number, pair in enumerate(_list(row, "history"), start=1):
        name = f'turn {number} of "history"'
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"{name} is not a pair [question, answer]")
        turns += Message("user", _filled(pair[0], name)), Message("assistant", _filled(pair[1], name))
    return tuple(turns)


def _conversation(row: Row, field: str) -> ChatRecord:
    messages = _with_system(row, _turns(row, field))
    if all(message.role != "assistant" for message in messages):
        raise ValueError(f'"{field}" has no assistant turn to learn from')
    return ChatRecord(messages)


def _with_system(row: Row, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Put the "system" field first, and see that no other system turn exists further down."""
    if row.get("system", "") != "":
        messages = (Message("system", _text(row, "system")), *messages)
    if any(message.role == "system" for message in messages[1:]):
        raise ValueError("a system turn must be the first and the only one")
    return messages


def _ending_with_user(messages: tuple[Message, ...], field: str) -> tuple[Message, ...]:
    if messages[-1].role not in ("user", "tool"):
        raise ValueError(f'the context in "{field}" must end with a user turn, not with "{messages[-1].role}"')
    return messages


def _turns(row: Row, field: str) -> tuple[Message, ...]:
    turns = _list(row, field)
    if not turns:
        raise ValueError(f'"{field}" is empty')
    return tuple(_message(turn, f'turn {number} of "{field}"') for number, turn in enumerate(turns, start=1))


def _message(turn: Any, name: str) -> Message:
    """A turn written {"role", "content"} or {"from", "value"}."""
    if not isinstance(turn, dict):
        raise ValueError(f"{name} must be an object, found {_kind(turn)}")
    speaker, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if speaker is None or content is None:
        raise ValueError(f'{name} needs "role" and "content" (or "from" and "value")')
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        raise ValueError(f"{name} has the unknown role {speaker!r}; known are {', '.join(SPEAKERS)}")
    return Message(SPEAKERS[speaker], _filled(content, name))


def _reply(row: Row, field: str) -> tuple[tuple[Message, ...], str]:
    """(turns before the answer, the answer), of a text, one assistant turn, or a conversation that ends with one."""
    value = row[field]
    if isinstance(value, str):
        return (), _filled(value, f'"{field}"')
    turns = _turns({field: [value] if isinstance(value, dict) else value}, field)
    if turns[-1].role != "assistant":
        raise ValueError(f'"{field}" must end with an assistant turn')
    return turns[:-1], turns[-1].content


def _answer(value: Any, name: str) -> Answer:
    if not isinstance(value, dict) or "answer" not in value or "score" not in value:
        raise ValueError(f'{name} must be an object with "answer" and "score"')
    score = value["score"]
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise ValueError(f'"score" of {name} must be a number, found {_kind(score)}')
    try:
        finite = math.isfinite(score)
    except OverflowError:  # an integer that no float can hold
        finite = False
    if not finite:
        raise ValueError(f'"score" of {name} is not a finite number')
    return Answer(_filled(value["answer"], name), float(score))


def _list(row: Row, field: str) -> list[Any]:
    if not isinstance(row[field], list):
        raise ValueError(f'"{field}" must be a list, found {_kind(row[field])}')
    return row[field]


def _text(row: Row, field: str) -> str:
    return _string(row[field], f'"{field}"')


def _filled(value: Any, name: str) -> str:
    if not _string(value, name).strip():
        raise ValueError(f"{name} is empty")
    return value


def _string(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a string, found {_kind(value)}")
    try:  # JSON can escape half of a surrogate pair, which no tokenizer takes
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} holds a broken character (half of a surrogate pair)") from error
    return value


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")

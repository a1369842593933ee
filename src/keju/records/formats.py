"""Field layouts of JSON records: one small function a layout, `detect` picks by the fields that are there.

Every function takes a JSON object without its null fields and returns a record; what is wrong is said by a UserError
without the place, which the reader adds. To accept another layout, write its function and add a line to `FORMATS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from keju.errors import UserError
from keju.records.record import Answer, ChatRecord, Message, RankedRecord, Record, TextRecord
from keju.records.tools import tools_text
from keju.records.turns import MEDIA, REASONING, reasoning_of, turns_of
from keju.records.values import filled, kind_of, listed, number, present, says_nothing, string, truth

Row = dict[str, Any]


def ranked(row: Row) -> RankedRecord:
    """{"prompt": str or messages, "prefix"?, "system"?, "answers": [{"answer": str, "score": number}, ...]}.

    An answer may also have "is_good", a mark of its own, and "reasoning_content".
    """
    answers = listed(row["answers"], '"answers"')
    if not answers:
        raise UserError('"answers" is empty')
    scored = tuple(_answer(answer, f'answer {number} of "answers"') for number, answer in enumerate(answers, start=1))
    return RankedRecord(_context(row), scored, prefix=_text(row, "prefix") if "prefix" in row else "")


def preference(row: Row) -> RankedRecord:
    """{"prompt"|"conversations"|"instruction", "chosen", "rejected"}: texts, turns, or whole conversations (TRL).

    Scores are those of the row ("score_chosen", "score_rejected"), 0 and its "margin", or 1 and 0.
    """
    chosen_context, chosen = _answer_turn(row, "chosen")
    rejected_context, rejected = _answer_turn(row, "rejected")
    if chosen_context != rejected_context:
        raise UserError('"chosen" and "rejected" do not answer the same conversation')
    if chosen_context and "history" in row:
        raise UserError('"history" beside a whole conversation in "chosen"')
    context = _ending_with_user(_with_system(row, chosen_context), "chosen") if chosen_context else _context(row)
    return _pair(row, context, chosen, rejected)


def rejected_reply(row: Row) -> RankedRecord:
    """{"messages", "rejected_response"|"rejected_messages"}: another answer to the same conversation (ms-swift)."""
    messages = _conversation(row, "messages").messages
    if messages[-1].role != "assistant":
        raise UserError('"messages" must end with an assistant turn, which is the better answer')
    field = next(name for name in REJECTED if name in row)
    before, rejected = _answer_turn(row, field)
    if before and _with_system(row, before) != messages[:-1]:
        raise UserError(f'"messages" and "{field}" do not answer the same conversation')
    context = _ending_with_user(messages[:-1] or _context({}), "messages")
    return _pair(row, context, _as_answer(messages[-1], "the last turn"), rejected)


def alpaca(row: Row) -> ChatRecord | RankedRecord:
    """{"instruction", "input"?, "output", "system"?, "history"?}; a list as "output" holds answers, best first."""
    context = _context(row)
    if isinstance(row["output"], list):
        outputs = [filled(text, f'answer {number} of "output"') for number, text in enumerate(row["output"], start=1)]
        if not outputs:
            raise UserError('"output" is empty')
        return RankedRecord(context, tuple(Answer(text, float(-rank)) for rank, text in enumerate(outputs)))
    return ChatRecord((*context, Message("assistant", filled(row["output"], '"output"'))))


def completion(row: Row) -> ChatRecord:
    """{"prompt": str or messages, "completion": str or turns} (TRL); of both, only the completion is learned."""
    context = _context(row)
    if isinstance(row["prompt"], list) and mark_of(row) is None:
        context = tuple(replace(turn, weight=0.0) if turn.role == "assistant" else turn for turn in context)
    return ChatRecord((*context, *_reply(row, "completion")))


def chat(row: Row) -> ChatRecord:
    """{"messages": [{"role", "content"}, ...], "system"?}."""
    return _conversation(row, "messages")


def sharegpt(row: Row) -> ChatRecord:
    """{"conversations": [{"from", "value"}, ...], "system"?}."""
    return _conversation(row, "conversations")


def text(row: Row) -> TextRecord:
    """{"text": str}."""
    _refuse_answers(row, "text", but=("target",))  # of a text, which class it is
    return TextRecord(filled(row["text"], '"text"'))


def prompt(row: Row) -> TextRecord | ChatRecord:
    """{"prompt": str, "label"?: str}: a text, continued by its label; or {"prompt": messages}: a prompt alone, as is
    a text with a system turn or earlier turns."""
    _refuse_answers(row, "prompt")
    beside = [name for name in ("system", "system_prompt", "history", *TOOLS) if not says_nothing(row.get(name))]
    if isinstance(row["prompt"], list) or beside:
        if "label" in row:
            raise UserError('"label" continues a "prompt" that is a text, without system, history and tools')
        return ChatRecord(_context(row))
    label = _text(row, "label") if "label" in row else ""
    return TextRecord(filled(_text(row, "prompt") + label, '"prompt"'), label=label)


# "answer", "responses", "response_a", "model_output", "chosen_response", but not "answer_type"
_ANSWER = re.compile(
    r"(?:.*_)?(?:(answer|response|output|completion|generation|target|solution)s?|repl(?:y|ies)|chosen|rejected|selected)"
    r"_?(?:[0-9]+|[a-d])?"
)
MARKS = ("label", "kto_tag", "is_good")  # whether an answer is good or bad by itself (KTO)
TOOLS = ("tools", "functions")
REJECTED = ("rejected_response", "rejected_messages")
LEAST_MARGIN = 1e-6  # of two scores, where a row gives its pair the margin 0: one answer is still the better one
_SCORES = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"), ("chosen_rating", "rejected_rating"))
_SYSTEM = ("system", "system_prompt")
_PAIRED = ("margin", *(name for names in _SCORES for name in names))
_FLAGS = ("loss", "train", "masked", "mask", "training_detail", "train_detail")
# Fields that some format gives a meaning to: a layout that does not read one refuses it.
MEANINGFUL = frozenset(
    (*MARKS, *TOOLS, *REJECTED, *REASONING, *_SYSTEM, *_PAIRED, *_FLAGS, *MEDIA)
    + ("history", "prefix", "weight", "loss_scale", "channel", "chosen", "rejected", "objects", "chat_template_kwargs")
    + ("labels", "completion_mask", "assistant_masks", "loss_mask", "loss_weight", "sample_weight", "mask_history")
    + ("train_on_inputs", "train_on_prompt", "cot", "chain_of_thought", "thought", "thoughts")
)
_ONE_ANSWER = {*MARKS, *REASONING, *_SYSTEM, *TOOLS, "weight"}
_CHAT = {*MARKS, *_SYSTEM, *TOOLS, "weight"}
# Of plain texts, numbers and names that come with them say nothing about the text.
_TEXT = MEANINGFUL - {*MEDIA, *_SYSTEM, *REJECTED, "chosen", "rejected", "weight", "labels", "mask", "completion_mask"}

# (the fields that must be there, the function, which other fields it reads or may pass over). The first line whose
# fields are all there wins, so that fields that tell more come first.
FORMATS: tuple[tuple[frozenset[str], Callable[[Row], Record], frozenset[str]], ...] = tuple(
    (frozenset(fields), parse, frozenset(also))
    for fields, parse, also in (
        (("answers",), ranked, {*_SYSTEM, *TOOLS, "history", "prefix"}),
        (("chosen", "rejected"), preference, {*_SYSTEM, *TOOLS, *_PAIRED, "history"}),
        (("messages", "rejected_response"), rejected_reply, {*_SYSTEM, *TOOLS, *_PAIRED}),
        (("messages", "rejected_messages"), rejected_reply, {*_SYSTEM, *TOOLS, *_PAIRED}),
        (("instruction", "output"), alpaca, {*_ONE_ANSWER, "history"}),
        (("prompt", "completion"), completion, {*_ONE_ANSWER, "history"}),
        (("messages",), chat, _CHAT),
        (("conversations",), sharegpt, _CHAT),
        (("text",), text, _TEXT),
        (("prompt",), prompt, {*_SYSTEM, *TOOLS, "history", "label", "chosen", "rejected"}),
    )
)
EXPECTED = "Expected " + ", or ".join("+".join(f'"{name}"' for name in sorted(fields)) for fields, *_ in FORMATS)


def detect(value: Any) -> Record:
    """Turn one JSON value into a record. Raises UserError that says what is wrong, without the place."""
    if not isinstance(value, dict):
        raise UserError(f"expected a JSON object, found {kind_of(value)}")
    row = present(value)
    for fields, parse, also in FORMATS:
        if fields <= row.keys():
            _refuse_unread(row, fields, also)
            return _with_fields(row, parse(row), also)
    raise UserError(f"fields {names_of(row)} are no known format. {EXPECTED}")


def names_of(row: Row) -> str:
    """The first fields of an object for a message of one line: line ends and half surrogate pairs are escaped."""
    return ", ".join(f'"{repr(name[:40])[1:-1]}"' for name in list(row)[:8]) or "none"


def mark_of(row: Row) -> bool | None:
    """Whether a row marks its answer as good; None where it does not say.

    Raises UserError for a mark that cannot be understood, and for two that contradict each other.
    """
    found = {name: truth(row[name], f'"{name}"') for name in MARKS if not says_nothing(row.get(name))}
    if len(set(found.values())) > 1:
        raise UserError(f"{' and '.join(map(repr, found))} contradict each other")
    return next(iter(found.values()), None)


def _refuse_answers(row: Row, field: str, but: Sequence[str] = ()) -> None:
    """Raises UserError for an answer: learning the rest of its row alone would be the wrong thing, without a word."""
    for name, value in row.items():
        found = _ANSWER.fullmatch(name.lower())
        if found and found[1] not in but and isinstance(value, str | list | dict) and not says_nothing(value):
            raise UserError(f'"{field}" with "{name}" is no known format. {EXPECTED}')


def _refuse_unread(row: Row, fields: frozenset[str], also: frozenset[str]) -> None:
    """Raises UserError for a field with a meaning that this layout has no place for."""
    layout = "+".join(f'"{name}"' for name in sorted(fields))
    for name in row:
        if name not in MEANINGFUL or name in fields or name in also or says_nothing(row[name]):
            continue
        value = row[name]
        harmless = {"weight": (1,), "loss": (True,), "train": (True,), "masked": (False,), "mask": ("User", "user")}
        harmless |= dict.fromkeys(REASONING, (True, False, "on", "off"))  # says how an answer was made
        if isinstance(value, str | bool | int | float) and value in harmless.get(name, ()):
            continue
        if name in MEDIA:
            raise UserError(f'"{name}" cannot be learned: only text is')
        raise UserError(f'"{name}" has no known meaning beside {layout}; take it out, or give it another name')


def _with_fields(row: Row, record: Record, also: frozenset[str]) -> Record:
    """The record with what the row says beside its turns and answers: tools, a thought, a weight, a mark."""
    if isinstance(record, TextRecord):
        return record
    tools = [tools_text(row[name], f'"{name}"') for name in TOOLS if name in row]
    if len({text for text in tools if text}) > 1:
        raise UserError('"tools" and "functions" differ')
    record = replace(record, tools=max(tools, default=""))
    if "weight" not in also:
        return record
    reasoning = reasoning_of(row, "") if also.issuperset(REASONING) else ""
    mark, weight = mark_of(row), number(row.get("weight", 1), '"weight"')
    if weight < 0:
        raise UserError('"weight" is below 0')
    if isinstance(record, RankedRecord):
        if reasoning or mark is not None or weight != 1:
            raise UserError(f"fields {names_of(row)}: a mark, a weight or a reasoning beside several answers")
        return record
    if reasoning:
        *before, last = record.messages
        if last.reasoning not in ("", reasoning):
            raise UserError("the row and its answer both have a reasoning")
        record = replace(record, messages=(*before, replace(last, reasoning=reasoning)))
    if mark is not None:
        if weight != 1:
            raise UserError('"weight" beside a mark of the answer (KTO) has no known meaning')
        return _marked(record, mark)
    weighted = (
        replace(message, weight=message.weight * weight) if message.role == "assistant" else message
        for message in record.messages
    )
    return record if weight == 1 else replace(record, messages=tuple(weighted))


def _marked(record: ChatRecord, mark: bool) -> RankedRecord:
    *context, last = record.messages
    if last.role != "assistant":
        raise UserError("a conversation with a mark must end with the answer that is marked")
    if not context:
        raise UserError("a marked answer without a question")
    answer = replace(_as_answer(last, "a marked answer"), score=float(mark), is_good=mark)
    return RankedRecord(_ending_with_user(tuple(context), "the conversation"), (answer,), tools=record.tools)


def _context(row: Row) -> tuple[Message, ...]:
    """System turn, history and question, from whichever fields a layout has for them."""
    turns = _history(row) if "history" in row else ()
    field = next((name for name in ("prompt", "conversations", "messages", "instruction") if name in row), None)
    if field is None:
        raise UserError('"prompt" is missing')
    if isinstance(row[field], list):
        return _ending_with_user(_with_system(row, (*turns, *turns_of(row[field], field))), field)
    question = _text(row, field)
    if field == "instruction" and row.get("input", "") != "":
        question = "\n".join(part for part in (question, _text(row, "input")) if part)
    return _with_system(row, (*turns, Message("user", filled(question, f'"{field}"'))))


def _history(row: Row) -> tuple[Message, ...]:
    """Earlier turns written as pairs [question, answer]."""
    turns: list[Message] = []
    for place, pair in enumerate(listed(row["history"], '"history"'), start=1):
        name = f'turn {place} of "history"'
        if not isinstance(pair, list) or len(pair) != 2:
            raise UserError(f"{name} is not a pair [question, answer]")
        turns += Message("user", filled(pair[0], name)), Message("assistant", filled(pair[1], name))
    return tuple(turns)


def _conversation(row: Row, field: str) -> ChatRecord:
    messages = _with_system(row, turns_of(row[field], field))
    if all(message.role != "assistant" for message in messages):
        raise UserError(f'"{field}" has no assistant turn to learn from')
    return ChatRecord(messages)


def _with_system(row: Row, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Put the system text of the row first; the conversation must not begin with another one."""
    found = {_text(row, name) for name in _SYSTEM if row.get(name, "") != ""}
    if messages[:1] and messages[0].role == "system":
        found.add(messages[0].content)
        messages = messages[1:]
    if len(found) > 1:
        raise UserError("a system turn must be the first and the only one, and the row has two that differ")
    return (*(Message("system", content) for content in found), *messages)


def _ending_with_user(messages: tuple[Message, ...], field: str) -> tuple[Message, ...]:
    if not messages or messages[-1].role not in ("user", "tool"):
        found = f'"{messages[-1].role}"' if messages else "nothing"
        raise UserError(f'the context in "{field}" must end with a user turn, not with {found}')
    return messages


def _reply(row: Row, field: str) -> tuple[Message, ...]:
    """Turns that end with the assistant's, of a text, one turn, or several."""
    value = row[field]
    if isinstance(value, str):
        return (Message("assistant", filled(value, f'"{field}"')),)
    turns = turns_of([value] if isinstance(value, dict) else value, field)
    if turns[-1].role != "assistant":
        raise UserError(f'"{field}" must end with an assistant turn')
    return turns


def _answer_turn(row: Row, field: str) -> tuple[tuple[Message, ...], Answer]:
    """(turns before the answer, the answer), of a text, one assistant turn, or a conversation that ends with one."""
    *before, last = _reply(row, field)
    return tuple(before), _as_answer(last, f'"{field}"')


def _as_answer(message: Message, name: str) -> Answer:
    if message.tool_calls:
        raise UserError(f"{name} calls tools, which answers that are compared cannot hold")
    if message.weight != 1:
        raise UserError(f"{name} has a weight, which only turns of conversations have")
    return Answer(message.content, 1.0, reasoning=message.reasoning)


def _pair(row: Row, context: tuple[Message, ...], chosen: Answer, rejected: Answer) -> RankedRecord:
    scores: set[tuple[float, float]] = set()
    for names in _SCORES:
        if len(given := [name for name in names if name in row]) == 1:
            raise UserError(f'"{given[0]}" without "{names[1 - names.index(given[0])]}"')
        if given:
            scores.add((number(row[names[0]], f'"{names[0]}"'), number(row[names[1]], f'"{names[1]}"')))
    if len(scores) > 1:
        raise UserError(f"fields {names_of(row)}: the scores of the answers differ")
    better, worse = next(iter(scores), (1.0, 0.0))
    if better < worse:
        raise UserError("the chosen answer has a lower score than the rejected one")
    if "margin" in row:
        margin = number(row["margin"], '"margin"')
        if margin < 0:
            raise UserError('"margin" is below 0: the chosen answer would be the worse one')
        if scores and abs(better - worse - margin) > 1e-6 * max(1.0, abs(margin)):
            raise UserError('"margin" is not the difference of the scores')
        if not scores:  # a margin of 0 is still a preference
            better, worse = max(margin, LEAST_MARGIN), 0.0
    return RankedRecord(context, (replace(chosen, score=better), replace(rejected, score=worse)))


def _answer(value: Any, name: str) -> Answer:
    if not isinstance(value, dict) or "answer" not in value or "score" not in value:
        raise UserError(f'{name} must be an object with "answer" and "score"')
    score = number(value["score"], f'"score" of {name}')
    mark = value.get("is_good")
    is_good = None if says_nothing(mark) else truth(mark, f'"is_good" of {name}')
    return Answer(filled(value["answer"], name), score, is_good, reasoning_of(value, f" of {name}"))


def _text(row: Row, field: str) -> str:
    return string(row[field], f'"{field}"')

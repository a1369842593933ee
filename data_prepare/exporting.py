"""Records as rows of the formats that other toolkits read: one small function a layout.

To add a layout, write its function and a line in `LAYOUTS` with its columns. A function raises UserError, without the
place, where the layout cannot hold a record, and names in `left_out` what the rows do not tell of a record they hold.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from keju.data_prepare.formats.canonical import plain_context, tools_field, turns
from keju.errors import UserError
from keju.records.formats import detect
from keju.records.record import CONTRADICTION, Answer, ChatRecord, Message, RankedRecord, Record, TextRecord
from keju.records.turns import turn_of

Row = dict[str, Any]
PAIRS = ("all", "best_worst")
SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}
NO_FIELD = "this layout has no field for"
ALL_BAD = "its answers are marked as bad"


class Exported(NamedTuple):
    """rows: none is empty of what the layout needs. left_out: what of the record is in no row, "" for nothing; or, of
    no rows, why."""

    rows: list[Row]
    left_out: str = ""


@dataclass(frozen=True)
class Choices:
    """pairs: of all answers that differ in score, or of the best and the worst. conversational: prompts and answers are
    lists of turns, which also hold system turns and earlier turns."""

    pairs: str = "all"
    conversational: bool = False


def alpaca(record: Record, choices: Choices) -> Exported:
    """{"instruction", "input", "output", "system"?, "history"?}."""
    messages, left_out = _conversation(record)
    if not messages:
        return Exported([], left_out)
    _check_ends(messages[-1])
    _check_plain(record, messages)
    return Exported([{**_instruction(messages[:-1]), "output": messages[-1].content}], left_out)


def sharegpt(record: Record, choices: Choices) -> Exported:
    """{"conversations": [{"from", "value", "loss"?}, ...], "system"?, "tools"?}; calls are turns of "function_call"."""
    messages, left_out = _conversation(record)
    if not messages:
        return Exported([], left_out)
    system, rest = _parted(messages)
    spoken = [_sharegpt_turn(message) for message in rest]
    tools = {"tools": record.tools} if record.tools else {}
    if any(message.name for message in rest):
        left_out = left_out or "the names of tools in their turns"
    return Exported([{"conversations": spoken, **system, **tools}], left_out)


def messages(record: Record, choices: Choices) -> Exported:
    """{"messages": [{"role", "content"}, ...]}."""
    found, left_out = _conversation(record)
    return Exported([{"messages": turns(found), **tools_field(record.tools)}] if found else [], left_out)


def preference(record: Record, choices: Choices) -> Exported:
    """{"prompt", "chosen", "rejected"} (TRL), a row for each pair of answers."""
    answers = _answers(record)
    if record.contradicts_itself:
        return Exported([], CONTRADICTION)
    better = [(one, other) for one in answers for other in answers if one.score > other.score]
    if not better:
        why = "all answers have the same score" if len(answers) > 1 else "there is one answer alone"
        raise UserError(f"{why}, so that there is no pair")
    left_out = ""
    if choices.pairs == "best_worst":
        left_out = "answers between the best and the worst" if len(answers) > 2 else ""
        better = [(record.best, min(answers, key=lambda answer: answer.score))]
    prompt = _prompt(record.messages, choices, record.tools)
    return Exported(
        [{**prompt, "chosen": _reply(a, choices), "rejected": _reply(b, choices)} for a, b in better], left_out
    )


def kto(record: Record, choices: Choices) -> Exported:
    """{"prompt", "completion", "label"} (TRL): the mark of the answer, or true above the mean score of the prompt's
    answers, false below it, as in `train_dpo --loss_type kto`; a lone answer without a mark is a good one."""
    if isinstance(record, ChatRecord):
        *context, last = _conversation(record)[0]
        _check_ends(last)
        if last.tool_calls or last.weight != 1:
            raise UserError("kto has no field for calls of tools, nor for the weight of an answer")
        answers, context = (Answer(last.content, 1.0, reasoning=last.reasoning),), tuple(context)
    else:
        answers, context = _answers(record), record.messages
        if record.contradicts_itself:
            return Exported([], CONTRADICTION)
    mean = sum(answer.score for answer in answers) / len(answers)
    labelled = [
        (answer, answer.score > mean if answer.is_good is None else answer.is_good)
        for answer in answers
        if answer.score != mean or answer.is_good is not None
    ]
    labelled = labelled or ([(answers[0], True)] if len(answers) == 1 else [])
    if not labelled:
        raise UserError("all answers have the same score, so that none is good or bad")
    prompt = _prompt(context, choices, record.tools)
    rows = [{**prompt, "completion": _reply(answer, choices), "label": good} for answer, good in labelled]
    return Exported(rows, "unmarked answers of the mean score" if len(rows) < len(answers) else "")


def ranked(record: Record, choices: Choices) -> Exported:
    """{"instruction", "input", "output": [answers, best first], "system"?, "history"?}."""
    answers = sorted(_answers(record), key=lambda answer: -answer.score)
    if record.best.is_good is False:
        return Exported([], ALL_BAD)
    if record.contradicts_itself:
        return Exported([], CONTRADICTION)
    _check_plain(record, record.messages)
    if any(answer.reasoning for answer in answers):
        raise UserError(f"{NO_FIELD} reasoning; export as messages")
    if any(one.score == other.score for one, other in pairwise(answers)):
        raise UserError("two answers have the same score, which a ranked list cannot tell")
    return Exported([{**_instruction(record.messages), "output": [answer.text for answer in answers]}])


def prompts(record: Record, choices: Choices) -> Exported:
    """{"prompt"}, without any answer."""
    if isinstance(record, TextRecord):
        text = record.text.removesuffix(record.label)
        return Exported([_prompt((Message("user", text or record.text),), choices)])
    context = record.prompt if isinstance(record, ChatRecord) else record.messages
    if not context:
        raise UserError("a conversation that begins with its answer has no prompt")
    return Exported([_prompt(context, choices, record.tools)])


def text(record: Record, choices: Choices) -> Exported:
    """{"text"}."""
    if not isinstance(record, TextRecord):
        raise UserError("turns become a text only by a model's chat template; export them as messages")
    return Exported([{"text": record.text}], "where the label begins" if record.label else "")


class Layout(NamedTuple):
    """columns: every field that its rows may have, with what it holds (see keju.data_prepare.formats.row_files)."""

    rows: Callable[[Record, Choices], Exported]
    columns: Mapping[str, str]


_INSTRUCTION = {"instruction": "text", "input": "text"}
_CONTEXT = {"system": "text", "history": "history"}
_RECORDS = {name: "text" for name in ("text", "prompt", "label", "system", "prefix")}
LAYOUTS = {
    "records": Layout(lambda *_: Exported([]), {**_RECORDS, "answers": "answers", "messages": "turns"}),
    "alpaca": Layout(alpaca, {**_INSTRUCTION, "output": "text", **_CONTEXT}),
    "sharegpt": Layout(sharegpt, {"conversations": "conversation", "system": "text"}),
    "messages": Layout(messages, {"messages": "turns"}),
    "preference": Layout(preference, {"prompt": "said", "chosen": "said", "rejected": "said"}),
    "kto": Layout(kto, {"prompt": "said", "completion": "said", "label": "flag"}),
    "ranked": Layout(ranked, {**_INSTRUCTION, "output": "texts", **_CONTEXT}),
    "prompts": Layout(prompts, {"prompt": "said"}),
    "text": Layout(text, {"text": "text"}),
}


def columns(layout: str, choices: Choices) -> dict[str, str]:
    """Field -> what it holds, of all rows of an export."""
    said = "turns" if choices.conversational else "text"
    return {name: said if kind == "said" else kind for name, kind in LAYOUTS[layout].columns.items()}


def export(row: Row, layout: str, choices: Choices) -> Exported:
    """The rows of a record that is given as the row of an Item. Raises UserError where the layout cannot hold it."""
    return Exported([row]) if layout == "records" else LAYOUTS[layout].rows(detect(row), choices)


def _conversation(record: Record) -> tuple[tuple[Message, ...], str]:
    """(turns, what they leave out): of ranked answers the best is the last turn; none where that is no good one."""
    if isinstance(record, TextRecord):
        raise UserError("a text has no turns; export it as text")
    if isinstance(record, RankedRecord):
        best = record.best
        left_out = "answers other than the best" if len(_answers(record)) > 1 else ""
        if best.is_good is False or record.contradicts_itself:
            return (), CONTRADICTION if record.contradicts_itself else ALL_BAD
        return (*record.messages, Message("assistant", best.text, best.reasoning)), left_out
    if all(message.role != "assistant" for message in record.messages):
        raise UserError("a prompt without an answer; export it as prompts")
    return record.messages, ""


def _answers(record: Record) -> tuple[Answer, ...]:
    if not isinstance(record, RankedRecord):
        raise UserError("ranked answers are needed here")
    if record.prefix:
        raise UserError('no field for the "prefix" of the answers; only the layout records has one')
    return record.answers


def _parted(messages: Sequence[Message]) -> tuple[Row, Sequence[Message]]:
    """(the field "system" if there is such a turn, the other turns)."""
    system = [message.content for message in messages[:1] if message.role == "system"]
    return ({"system": system[0]} if system else {}), messages[len(system) :]


def _check_ends(last: Message) -> None:
    if last.role != "assistant":
        raise UserError("the conversation does not end with an answer")


def _check_plain(record: ChatRecord | RankedRecord, messages: Sequence[Message]) -> None:
    """Raises UserError where something is more than a text that somebody says."""
    found = {name for message in messages for name in turn_of(message)} - {"role", "content"}
    if found or record.tools:
        raise UserError(f'{NO_FIELD} "{min(found, default="tools")}"; export as messages')


def _sharegpt_turn(message: Message) -> Row:
    if message.reasoning:
        raise UserError(f"{NO_FIELD} reasoning; export as messages")
    if message.tool_calls and message.content:
        raise UserError("a turn of sharegpt says something or calls tools, not both; export as messages")
    if message.weight not in (0, 1):
        raise UserError("a turn of sharegpt is trained or not, without a weight; export as messages")
    loss = {} if message.weight else {"loss": False}
    if message.tool_calls:
        calls = [call["function"] for call in json.loads(message.tool_calls)]
        value = json.dumps(calls if len(calls) > 1 else calls[0], ensure_ascii=False)
        return {"from": "function_call", "value": value, **loss}
    return {"from": SHAREGPT[message.role], "value": message.content, **loss}


def _instruction(context: Sequence[Message]) -> Row:
    """Alpaca's fields for what stands before the answer."""
    system, rest = _parted(context)
    *earlier, question = rest or [Message("assistant", "")]
    expected = ["user", "assistant"] * (len(earlier) // 2) + ["user"]
    if [message.role for message in rest] != expected:
        raise UserError("alpaca holds questions and answers in turn, the last of them an answer; export as messages")
    pairs = [[one.content, other.content] for one, other in zip(earlier[::2], earlier[1::2], strict=True)]
    return {"instruction": question.content, "input": "", **system, **({"history": pairs} if pairs else {})}


def _prompt(context: Sequence[Message], choices: Choices, tools: str = "") -> Row:
    if choices.conversational:
        return {"prompt": turns(context), **tools_field(tools)}
    plain = plain_context(context)
    if plain is None or "system" in plain or tools:
        raise UserError("a plain prompt holds neither a system turn nor tools nor earlier turns; use --conversational")
    return plain


def _reply(answer: Answer, choices: Choices) -> str | list[Row]:
    if choices.conversational:
        return turns([Message("assistant", answer.text, answer.reasoning)])
    if answer.reasoning:
        raise UserError("a plain answer holds no reasoning; use --conversational")
    return answer.text

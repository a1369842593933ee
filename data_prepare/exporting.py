"""Records as rows of the formats that other toolkits read: one small function a layout.

To add a layout, write its function and a line in `LAYOUTS` with its columns. A function raises ValueError, without the
place, where the layout cannot hold a record, and names in `left_out` what the rows do not tell of a record they hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from keju.data_prepare.formats.canonical import plain_context, turns
from keju.records.formats import detect
from keju.records.record import Answer, ChatRecord, Message, RankedRecord, Record, TextRecord

Row = dict[str, Any]
PAIRS = ("all", "best_worst")
SHAREGPT = {"user": "human", "assistant": "gpt", "tool": "observation"}


class Exported(NamedTuple):
    """rows: none is empty of what the layout needs. left_out: what of the record is in no row; "" for nothing."""

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
    _check_ends(messages[-1])
    return Exported([{**_instruction(messages[:-1]), "output": messages[-1].content}], left_out)


def sharegpt(record: Record, choices: Choices) -> Exported:
    """{"conversations": [{"from", "value"}, ...], "system"?}."""
    messages, left_out = _conversation(record)
    system, rest = _parted(messages)
    spoken = [{"from": SHAREGPT[message.role], "value": message.content} for message in rest]
    return Exported([{"conversations": spoken, **system}], left_out)


def messages(record: Record, choices: Choices) -> Exported:
    """{"messages": [{"role", "content"}, ...]}."""
    found, left_out = _conversation(record)
    return Exported([{"messages": turns(found)}], left_out)


def preference(record: Record, choices: Choices) -> Exported:
    """{"prompt", "chosen", "rejected"} (TRL), a row for each pair of answers."""
    answers = _answers(record)
    better = [(one, other) for one in answers for other in answers if one.score > other.score]
    if not better:
        raise ValueError("all answers have the same score, so that there is no pair")
    left_out = ""
    if choices.pairs == "best_worst":
        left_out = "answers between the best and the worst" if len(answers) > 2 else ""
        better = [(record.best, min(answers, key=lambda answer: answer.score))]
    prompt = _prompt(record.messages, choices)
    return Exported(
        [{**prompt, "chosen": _reply(a, choices), "rejected": _reply(b, choices)} for a, b in better], left_out
    )


def kto(record: Record, choices: Choices) -> Exported:
    """{"prompt", "completion", "label"} (TRL): true above the mean score of the prompt's answers, false below it, as in
    `train_dpo --loss_type kto`; a lone answer is a good one."""
    if isinstance(record, ChatRecord):
        *context, last = _conversation(record)[0]
        _check_ends(last)
        answers, context = (Answer(last.content, 1.0),), tuple(context)
    else:
        answers, context = _answers(record), record.messages
    mean = sum(answer.score for answer in answers) / len(answers)
    if len(answers) > 1 and len({answer.score for answer in answers}) == 1:
        raise ValueError("all answers have the same score, so that none is good or bad")
    prompt = _prompt(context, choices)
    labelled = [(answer, answer.score > mean) for answer in answers if answer.score != mean]
    labelled = labelled if len(answers) > 1 else [(answers[0], True)]
    rows = [{**prompt, "completion": _reply(answer, choices), "label": good} for answer, good in labelled]
    return Exported(rows, "answers of the mean score" if len(rows) < len(answers) else "")


def ranked(record: Record, choices: Choices) -> Exported:
    """{"instruction", "input", "output": [answers, best first], "system"?, "history"?}."""
    answers = sorted(_answers(record), key=lambda answer: -answer.score)
    if any(one.score == other.score for one, other in pairwise(answers)):
        raise ValueError("two answers have the same score, which a ranked list cannot tell")
    return Exported([{**_instruction(record.messages), "output": [answer.text for answer in answers]}])


def prompts(record: Record, choices: Choices) -> Exported:
    """{"prompt"}, without any answer."""
    if isinstance(record, TextRecord):
        text = record.text.removesuffix(record.label)
        return Exported([_prompt((Message("user", text or record.text),), choices)])
    context = record.prompt if isinstance(record, ChatRecord) else record.messages
    if not context:
        raise ValueError("a conversation that begins with its answer has no prompt")
    return Exported([_prompt(context, choices)])


def text(record: Record, choices: Choices) -> Exported:
    """{"text"}."""
    if not isinstance(record, TextRecord):
        raise ValueError("turns become a text only by a model's chat template; export them as messages")
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
    """The rows of a record that is given as the row of an Item. Raises ValueError where the layout cannot hold it."""
    return Exported([row]) if layout == "records" else LAYOUTS[layout].rows(detect(row), choices)


def _conversation(record: Record) -> tuple[tuple[Message, ...], str]:
    """(turns, what they leave out): of ranked answers the best is the last turn."""
    if isinstance(record, TextRecord):
        raise ValueError("a text has no turns; export it as text")
    if isinstance(record, RankedRecord):
        left_out = "answers other than the best" if len(_answers(record)) > 1 else ""
        return (*record.messages, Message("assistant", record.best.text)), left_out
    if all(message.role != "assistant" for message in record.messages):
        raise ValueError("a prompt without an answer; export it as prompts")
    return record.messages, ""


def _answers(record: Record) -> tuple[Answer, ...]:
    if not isinstance(record, RankedRecord):
        raise ValueError("ranked answers are needed here")
    if record.prefix:
        raise ValueError('no field for the "prefix" of the answers; only the layout records has one')
    return record.answers


def _parted(messages: Sequence[Message]) -> tuple[Row, Sequence[Message]]:
    """(the field "system" if there is such a turn, the other turns)."""
    system = [message.content for message in messages[:1] if message.role == "system"]
    return ({"system": system[0]} if system else {}), messages[len(system) :]


def _check_ends(last: Message) -> None:
    if last.role != "assistant":
        raise ValueError("the conversation does not end with an answer")


def _instruction(context: Sequence[Message]) -> Row:
    """Alpaca's fields for what stands before the answer."""
    system, rest = _parted(context)
    *earlier, question = rest or [Message("assistant", "")]
    expected = ["user", "assistant"] * (len(earlier) // 2) + ["user"]
    if [message.role for message in rest] != expected:
        raise ValueError("alpaca holds questions and answers in turn, the last of them an answer; export as messages")
    pairs = [[one.content, other.content] for one, other in zip(earlier[::2], earlier[1::2], strict=True)]
    return {"instruction": question.content, "input": "", **system, **({"history": pairs} if pairs else {})}


def _prompt(context: Sequence[Message], choices: Choices) -> Row:
    if choices.conversational:
        return {"prompt": turns(context)}
    plain = plain_context(context)
    if plain is None or "system" in plain:
        raise ValueError("a plain prompt holds neither a system turn nor earlier turns; use --conversational")
    return plain


def _reply(answer: Answer, choices: Choices) -> str | list[Row]:
    return turns([Message("assistant", answer.text)]) if choices.conversational else answer.text

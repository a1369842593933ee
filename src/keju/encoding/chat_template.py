"""Conversations as a chat template renders them, and where each answer stands in that text.

What is trained is a part of the rendered whole: it begins where what generation is given (the template's generation
prompt, with a <think> that it may open) ends or stops to agree with the whole, and ends with the token that ends the
turn. What cannot be found is refused.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from os.path import commonprefix
from typing import Any, NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from keju.encoding.refusals import RunawayTemplate, Unencodable
from keju.encoding.skeleton import Filled, Marked, Skeleton
from keju.encoding.template_bounds import SECONDS, TEXT, TIMES, OutOfTime, bounded
from keju.errors import UserError
from keju.records.record import Message

logger = logging.getLogger(__name__)

FEW = 8  # turns of which each is compared with its rendering as a last turn; of more, those of every shape
KEPT = 256  # skeletons: records of the same turns have the same one


class Turn(NamedTuple):
    """Places in a rendered text: of what is trained, of the answer proper behind its thought, of the end.

    ended: whether the template writes a token that ends the turn.
    """

    start: int
    answer: int
    end: int
    ended: bool


class Conversation(NamedTuple):
    text: str
    turns: list[Turn]


class ChatTemplate:
    """The chat template of a tokenizer.

    special_tokens: their names, by which the end of a turn is told. enable_thinking: what the template is given under
    this name (None: nothing). Raises UserError where the template does not read it.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, special_tokens: Sequence[str], enable_thinking: bool | None = None
    ) -> None:
        self.tokenizer = tokenizer
        names = sorted(filter(None, special_tokens), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, names)) or "(?!)")
        template = tokenizer.chat_template
        self._source = "\n".join(template.values()) if isinstance(template, dict) else template or ""
        self._settings = {}
        if enable_thinking is not None:
            if not re.search(r"\benable_thinking\b", self._source):
                raise UserError(f"{self._name} does not read enable_thinking", option="enable_thinking")
            self._settings["enable_thinking"] = enable_thinking
        self._reads_reasoning = bool(re.search(r"reasoning_content|\bthinking\b", self._source))
        self._has_warned = False  # of thoughts that are left out
        self._calls_as_text = False  # whether this template wants the arguments of calls as a text
        self._skeletons: dict[Any, Skeleton] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_skeletons": {}}  # other processes make their own

    @property
    def _name(self) -> str:
        name = self.tokenizer.name_or_path
        return f"the chat template of {name}" if name else "the chat template"

    # -- rendering ---------------------------------------------------------------------------------------------------

    def render(self, messages: Sequence[Message], tools: str = "", *, opens_answer: bool = False) -> str:
        """The text; opens_answer: with the generation prompt. Raises Unencodable for what the template refuses."""
        return self._apply(messages, tools, opens_answer, tokenize=False)

    def ids(self, messages: Sequence[Message], tools: str = "", *, opens_answer: bool = False) -> list[int]:
        """The template's own ids of the conversation."""
        return self._apply(messages, tools, opens_answer, tokenize=True)

    def prompt(self, messages: Sequence[Message], tools: str = "") -> str:
        """What generation of the next turn is given. Raises Unencodable where the template leaves something out."""
        text, marked = self.render(messages, tools, opens_answer=True), self._marked(messages)
        self._check(marked, self._of(marked, tools, opens_answer=True), tools, ())
        return text

    def _apply(self, messages: Sequence[Message], tools: str, opens_answer: bool, tokenize: bool) -> Any:
        messages = list(map(self._readable, messages))
        for calls_as_text in (False, True):
            self._calls_as_text = calls_as_text
            try:
                return self._bounded(messages, tools, opens_answer, tokenize)
            except TypeError as error:
                # DeepSeek-R1's template adds the arguments to a text; most others write an object as JSON.
                if calls_as_text or not any(message.tool_calls for message in messages):
                    raise Unencodable(f"{self._name} fails with the conversation: {error}") from error

    def _bounded(self, messages: Sequence[Message], tools: str, opens_answer: bool, tokenize: bool) -> Any:
        rows = [self._row(message) for message in messages]
        size = len(tools) + sum(len(message.content) + len(message.reasoning) for message in messages)
        settings = {"tools": json.loads(tools), **self._settings} if tools else self._settings
        try:
            with bounded():
                rendered = self.tokenizer.apply_chat_template(
                    rows, add_generation_prompt=opens_answer, tokenize=tokenize, return_dict=False, **settings
                )
        except OutOfTime as error:
            raise RunawayTemplate(f"{self._name} takes more than {SECONDS:g} s for one conversation") from error
        except MemoryError as error:
            raise RunawayTemplate(f"{self._name} fills the memory with one conversation") from error
        except (TemplateError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise Unencodable(f"{self._name} refuses the conversation: {reason}") from error
        if not tokenize and len(rendered) > TEXT + TIMES * size:
            raise RunawayTemplate(f"{self._name} makes {len(rendered)} characters of a conversation of {size}")
        return rendered

    def _row(self, message: Message) -> dict[str, Any]:
        row: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.reasoning:
            row["reasoning_content"] = message.reasoning
        if message.tool_calls:
            row["tool_calls"] = [self._call(call) for call in json.loads(message.tool_calls)]
        if message.name:
            row["name"] = message.name
        return row

    def _call(self, call: dict[str, Any]) -> dict[str, Any]:
        """A call as transformers documents it: its arguments are an object. OpenAI has a text of JSON there."""
        function = call.get("function", call)
        arguments = function.get("arguments", {})
        if self._calls_as_text:
            arguments = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        elif isinstance(arguments, str):
            with contextlib.suppress(json.JSONDecodeError):  # a text that is no JSON stays what it is
                arguments = json.loads(arguments)
        function = {**function, "arguments": arguments}
        return {**call, "function": function} if "function" in call else {"type": "function", "function": function}

    # -- where the answers stand -------------------------------------------------------------------------------------

    def last_turn(self, messages: Sequence[Message], tools: str = "") -> Conversation:
        """A conversation that ends with an assistant turn, and where that turn stands."""
        text, marked = self.render(messages, tools), self._marked(messages)
        filled = self._of(marked, tools).filled(text, marked.texts)
        if filled is None:
            return Conversation(text, [self._searched(messages, tools, text)])
        self._check(marked, filled.skeleton, tools, [len(messages) - 1])
        return Conversation(text, [_moved(self._turn(marked, tools, len(messages) - 1), filled)])

    def conversation(self, messages: Sequence[Message], turns: Sequence[int], tools: str = "") -> Conversation | None:
        """A conversation up to the last of `turns` (numbers of assistant turns), and where these stand.

        None where the template writes an earlier turn, or what stands before it, otherwise than while it is the last.
        """
        messages = messages[: turns[-1] + 1]
        text, marked = self.render(messages, tools), self._marked(messages)
        skeleton = self._of(marked, tools)
        filled = skeleton.filled(text, marked.texts)
        if filled is None:
            return None
        found: list[Turn] = []
        shapes: dict[Any, tuple[str, str, int]] = {}
        last_of = {_shape(marked, number): number for number in turns}
        for number in turns:
            shape = _shape(marked, number)
            turn = None
            if len(turns) > FEW and shape in shapes and last_of[shape] != number:
                turn = _alike(marked, skeleton, number, shapes[shape])
            if turn is None:
                turn = self._turn(marked, tools, number)
                whole = self._of(marked, tools, number + 1)
                if not turn.ended and number != turns[-1]:
                    return None
                if not skeleton.text.startswith(whole.text[: turn.end]):
                    return None
                shapes.setdefault(shape, _pattern(marked, whole, number, turn))
            found.append(_moved(turn, filled))
        self._check(marked, skeleton, tools, turns)
        return Conversation(text, found)

    def _marked(self, messages: Sequence[Message]) -> Marked:
        marked = Marked.of(list(map(self._readable, messages)))
        marked.must_think = {number for number, message in enumerate(messages) if message.reasoning}
        return marked

    def _readable(self, message: Message) -> Message:
        """A thought as the template can read it: beside the content, or within it."""
        if not message.reasoning or self._reads_reasoning:
            return message
        if "</think>" not in self._source:
            raise Unencodable(f"{self._name} has no place for thoughts, and an answer has one")
        content = f"<think>\n{message.reasoning}\n</think>\n\n{message.content}"
        return replace(message, reasoning="", content=content)

    def _of(self, marked: Marked, tools: str, count: int | None = None, *, opens_answer: bool = False) -> Skeleton:
        """The skeleton of the first `count` messages."""
        key = (tuple(marked.messages[:count]), tools, opens_answer)
        if key not in self._skeletons:
            if len(self._skeletons) >= KEPT:
                self._skeletons.clear()
            self._skeletons[key] = Skeleton(self.render(key[0], tools, opens_answer=opens_answer))
        return self._skeletons[key]

    def _turn(self, marked: Marked, tools: str, number: int) -> Turn:
        """An assistant turn in the skeleton in which it is the last."""
        whole = self._of(marked, tools, number + 1)
        own = [whole.place[mark] for mark in (*marked.thoughts[number], *marked.said[number]) if mark in whole.place]
        said = [whole.place[mark] for mark in marked.said[number] if mark in whole.place]
        given = self._given(marked, tools, number, whole)
        if not own and (marked.thoughts[number] or marked.said[number]):
            raise Unencodable(f"{self._name} leaves out the text of turn {number + 1} (assistant)")
        if not own:  # an empty answer
            return Turn(given, given, *self._end(whole.text, given))
        start = min(given, whole.starts[min(own)])
        after = whole.ends[max(own)]
        end, ended = self._end(whole.text, after)
        return Turn(start, whole.starts[min(said)] if said else end, end, ended)

    def _given(self, marked: Marked, tools: str, number: int, whole: Skeleton) -> int:
        """How much of `whole` generation of this turn is given."""
        if number == 0:
            return 0
        opening = self._of(marked, tools, number, opens_answer=True).text
        return len(opening) if whole.text.startswith(opening) else len(commonprefix([opening, whole.text]))

    def _end(self, text: str, after: int) -> tuple[int, bool]:
        """Where a last turn ends, whose content ends at `after`: with the last special token, if there is one."""
        found = list(self._special.finditer(text, after))
        return (found[-1].end(), True) if found else (len(text), False)

    def _check(self, marked: Marked, skeleton: Skeleton, tools: str, turns: Sequence[int]) -> None:
        """Raises Unencodable where the template leaves out what the record says."""
        for number, message in enumerate(marked.messages):
            for mark in marked.said[number]:
                if mark not in skeleton.place:
                    what = "a call of" if message.tool_calls else "the text of"
                    raise Unencodable(f"{self._name} leaves out {what} turn {number + 1} ({message.role})")
        for number in turns:
            whole = self._of(marked, tools, number + 1) if marked.thoughts[number] else skeleton
            if all(mark in whole.place for mark in marked.thoughts[number]):
                continue
            if number in marked.must_think:
                raise Unencodable(f"{self._name} leaves out the thought of turn {number + 1}; give one that keeps it")
            if not self._has_warned:
                self._has_warned = True
                logger.warning(
                    "%s leaves out what stands between <think> and </think> in answers: it is not trained. "
                    "--chat_template takes one that keeps it",
                    self._name,
                )
        for tool in json.loads(tools) if tools else ():
            name = tool.get("function", tool).get("name", "")
            if name not in skeleton.text:
                raise Unencodable(f"{self._name} leaves out the tools ({name})")

    def _searched(self, messages: Sequence[Message], tools: str, text: str) -> Turn:
        """The last turn where the template decides by the texts what it writes around them."""
        opening = self.render(messages[:-1], tools, opens_answer=True) if len(messages) > 1 else ""
        marked = self._marked(messages)
        for number, message in enumerate(messages):
            is_last = number == len(messages) - 1
            looked_for = [*marked.said[number], *(marked.thoughts[number] if is_last and message.reasoning else ())]
            for core in (marked.texts[mark] for mark in looked_for):
                if core not in text and json.dumps(core, ensure_ascii=False)[1:-1] not in text:
                    raise Unencodable(
                        f"{self._name} changes or leaves out a text of turn {number + 1} ({message.role})"
                    )
        said = [marked.texts[mark] for mark in marked.said[-1]]
        shared = len(opening) if text.startswith(opening) else len(commonprefix([opening, text]))
        answer = text.rfind(said[-1]) if said else shared
        behind = answer + len(said[-1]) if said else shared
        if len(said) > 1:
            answer = text.index(said[0], shared if text.startswith(opening) else 0)
        start = shared if text.startswith(opening) else min(shared, answer)
        if not 0 <= start <= answer:
            raise Unencodable(f"{self._name} changes turn {len(messages)}, so that what is trained cannot be found")
        return Turn(start, answer, *self._end(text, behind))


def _shape(marked: Marked, number: int) -> Any:
    """Turns of one shape are rendered in one way, the first and the last of a conversation perhaps excepted."""
    message, before = marked.messages[number], marked.messages[number - 1] if number else None
    return (
        before and (before.role, bool(marked.said[number - 1])),
        *(len(marks[number]) for marks in (marked.thoughts, marked.said)),
        bool(message.tool_calls),
    )


def _pattern(marked: Marked, whole: Skeleton, number: int, turn: Turn) -> tuple[str, str, int]:
    """(what stands between the text before a turn and its first text, what follows its last up to its end,
    how much of the former is trained)."""
    own = [whole.place[mark] for mark in (*marked.thoughts[number], *marked.said[number]) if mark in whole.place]
    if not own:
        return "\ue0f0", "", 0  # stands nowhere
    first = whole.starts[min(own)]
    before = whole.ends[min(own) - 1] if min(own) else 0
    return whole.text[before:first], whole.text[whole.ends[max(own)] : turn.end], first - turn.start


def _alike(marked: Marked, skeleton: Skeleton, number: int, pattern: tuple[str, str, int]) -> Turn | None:
    """A turn that stands in the skeleton as `pattern` says; None where it does not."""
    opening, tail, trained = pattern
    marks = (*marked.thoughts[number], *marked.said[number])
    if not marks or not all(mark in skeleton.place for mark in marks):
        return None
    first, after = skeleton.starts[skeleton.place[marks[0]]], skeleton.ends[skeleton.place[marks[-1]]]
    if not (skeleton.text.endswith(opening, 0, first) and skeleton.text.startswith(tail, after)):
        return None
    said = marked.said[number]
    answer = skeleton.starts[skeleton.place[said[0]]] if said else after + len(tail)
    return Turn(first - trained, answer, after + len(tail), True)


def _moved(turn: Turn, filled: Filled) -> Turn:
    """A turn of a skeleton in the text with which it is filled."""
    return Turn(filled.at(turn.start), filled.at(turn.answer), filled.at(turn.end), turn.ended)

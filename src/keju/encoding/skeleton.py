"""Where the texts of a conversation stand in what a chat template renders.

The conversation is rendered a second time with a mark in the place of each text: the skeleton. What stands between the
marks is the template's own. Rendered with the texts themselves, the same template must write the same with the texts in
the places of the marks, to the last character, and so their places are known. Blanks around a text stay what they are,
since templates cut them off, and so do <think> and </think>, at which templates cut an answer in two.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from keju.records.record import Message

MARK = re.compile("\ue0f0([0-9]+)\ue0f1")
THINK = re.compile("(</?think>)")


def _mark(number: int) -> str:
    return f"\ue0f0{number}\ue0f1"


@dataclass
class Marked:
    """A conversation with marks in the place of its texts.

    messages: as they are rendered. texts: what each mark stands for. Of each message, the numbers of the marks of its
    thought and of what is said (the names of the tools that are called included), in order. must_think: the numbers of
    the messages whose records give a thought by itself.
    """

    messages: list[Message] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    thoughts: list[list[int]] = field(default_factory=list)
    said: list[list[int]] = field(default_factory=list)
    must_think: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, messages: Sequence[Message]) -> Marked:
        marked = cls()
        for message in messages:
            thoughts: list[int] = []
            reasoning = marked._marked(message.reasoning, thoughts)
            content, said = marked._content(message, thoughts)
            calls = marked._calls(message.tool_calls, said)
            marked.messages.append(Message(message.role, content, reasoning, calls, message.name))
            marked.thoughts.append(thoughts)
            marked.said.append(said)
        return marked

    def _marked(self, text: str, numbers: list[int]) -> str:
        core = text.strip()
        if not core:
            return text
        numbers.append(len(self.texts))
        self.texts.append(core)
        before, _, after = text.partition(core)
        return before + _mark(numbers[-1]) + after

    def _content(self, message: Message, thoughts: list[int]) -> tuple[str, list[int]]:
        said: list[int] = []
        if message.role != "assistant" or "</think>" not in message.content:
            return self._marked(message.content, said), said
        *before, last = THINK.split(message.content)
        parts = [part if number % 2 else self._marked(part, thoughts) for number, part in enumerate(before)]
        return "".join(parts) + self._marked(last, said), said

    def _calls(self, calls: str, said: list[int]) -> str:
        if not calls:
            return ""
        rows = json.loads(calls)
        for row in rows:
            function = row.get("function", row)
            function["name"] = self._marked(function["name"], said)
        return json.dumps(rows, ensure_ascii=False)


@dataclass
class Skeleton:
    """A rendered text with marks. starts, ends: of the marks in `text`; numbers: which mark each is."""

    text: str
    numbers: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        for found in MARK.finditer(self.text):
            self.numbers.append(int(found[1]))
            self.starts.append(found.start())
            self.ends.append(found.end())
        self.place = {number: place for place, number in enumerate(self.numbers)}

    def filled(self, rendered: str, texts: Sequence[str]) -> Filled | None:
        """Where everything stands in `rendered`; None where it is not this skeleton with `texts` in it."""
        at = literal = 0
        ends = []
        for number, start, end in zip(self.numbers, self.starts, self.ends, strict=True):
            if number >= len(texts) or not rendered.startswith(self.text[literal:start], at):
                return None
            at += start - literal
            text = texts[number]
            if not rendered.startswith(text, at):
                text = json.dumps(text, ensure_ascii=False)[1:-1]  # Llama 3.1 writes what a tool says as JSON
                if not rendered.startswith(text, at):
                    return None
            at += len(text)
            ends.append(at)
            literal = end
        if rendered[at:] != self.text[literal:]:
            return None
        return Filled(self, ends)


@dataclass
class Filled:
    """A skeleton with its texts. ends: of the texts in what was rendered."""

    skeleton: Skeleton
    ends: list[int]

    def at(self, place: int) -> int:
        """The place in what was rendered of a place in the skeleton (outside of the marks)."""
        before = bisect_right(self.skeleton.ends, place) - 1
        return place if before < 0 else self.ends[before] + place - self.skeleton.ends[before]

"""The three kinds of record that every stage reads: a text, a conversation, a prompt with ranked answers.

`where` is "file:line" of the line a record came from, for error messages; it takes no part in comparisons.
"""

from __future__ import annotations

from dataclasses import dataclass, field

# Why a record is left out whose only answer is said to be better than itself.
CONTRADICTION = "the better and the worse answer are the same"
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    role: one of `ROLES`.
    content: may be empty where the turn calls tools.
    reasoning: what an assistant thought before `content`, without the marks that a template puts around it.
    tool_calls: the calls of an assistant turn, as the text of a JSON array in OpenAI's form ("" for none).
    name: of the tool that a tool turn answers for, where the record says so.
    weight: of an assistant turn in the loss of SFT; 0 leaves it untrained.
    """

    role: str
    content: str
    reasoning: str = ""
    tool_calls: str = ""
    name: str = ""
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A possible answer; a higher score is a better answer, and only the order of scores has a meaning.

    is_good: a mark that the record gives to this answer by itself (KTO); None where it gives none.
    reasoning: what was thought before `text`, as of a Message.
    """

    text: str
    score: float
    is_good: bool | None = None
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class TextRecord:
    """A document to pretrain on, or a bare prompt to answer.

    label: the end of `text` that the rest was given for, where the record says so. Prefix language models (GLM) read
    the rest as a context, and a mask token in it as what the label stands for.
    """

    text: str
    where: str = field(default="", compare=False)
    label: str = ""


@dataclass(frozen=True, slots=True)
class ChatRecord:
    """A conversation whose assistant turns are learned. A record of a prompt alone ends with a user turn.

    tools: what the assistant may call, as the text of a JSON array in OpenAI's form ("" for none).
    """

    messages: tuple[Message, ...]
    where: str = field(default="", compare=False)
    tools: str = ""

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The turns before the last assistant turn: what a model is given to write that turn itself."""
        for index in range(len(self.messages) - 1, -1, -1):
            if self.messages[index].role == "assistant":
                return self.messages[:index]
        return self.messages


@dataclass(frozen=True, slots=True)
class RankedRecord:
    """A context and its scored answers.

    messages: ends with a user (or tool) turn.
    answers: at least one, none empty, in the order of the file.
    prefix: a given beginning of the answer, which is not trained.
    tools: as of a ChatRecord.
    """

    messages: tuple[Message, ...]
    answers: tuple[Answer, ...]
    prefix: str = ""
    where: str = field(default="", compare=False)
    tools: str = ""

    @property
    def best(self) -> Answer:
        """The answer with the highest score, the first of them in a tie; one marked as bad only where all are."""
        return max(self.answers, key=lambda answer: (answer.is_good is not False, answer.score))

    @property
    def has_preference(self) -> bool:
        """Whether two different answers differ in score, which preference losses need."""
        return len({answer.score for answer in self.answers}) > 1 and not self._is_one_answer

    @property
    def contradicts_itself(self) -> bool:
        """Whether its only answer stands there several times, as better and as worse than itself."""
        return self._is_one_answer and len({(answer.score, answer.is_good) for answer in self.answers}) > 1

    @property
    def _is_one_answer(self) -> bool:
        return len({(answer.text, answer.reasoning) for answer in self.answers}) == 1


Record = TextRecord | ChatRecord | RankedRecord

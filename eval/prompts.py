"""Items to token ids: instruction, shots and question, in a text or in a conversation."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TypeVar

from keju.encoding.encoder import Encoder
from keju.errors import UserError
from keju.eval.scoring import Question
from keju.eval.task import Item, Protocol, Task
from keju.records.record import Message

Asked = TypeVar("Asked")


class NoRoom(UserError):
    """A question that is longer than what the model reads."""


def pick_shots(
    pool: Sequence[Item], scored: Sequence[Item], num_shots: int, seed: int, *, first: bool = False
) -> dict[str, list[Item]]:
    """`num_shots` examples of the pool for each group of the scored items, the same for all items of the group.

    first: the first ones in the order of the pool, which a benchmark has chosen; otherwise `seed` draws among those
    whose question is not scored. Raises UserError for a pool that is too small.
    """
    questions = set() if first else {item.question for item in scored}
    by_group: dict[str, list[Item]] = {}
    for item in pool:
        if item.answer is not None and item.question not in questions:
            by_group.setdefault(item.group, []).append(item)
    chosen = {}
    for group in sorted({item.group for item in scored}):
        usable = by_group.get(group, [])
        if len(usable) < num_shots:
            of_group = f" of {group}" if group else ""
            raise UserError(f"{num_shots}: there are only {len(usable)} examples{of_group} to show", option="num_shots")
        chosen[group] = usable[:num_shots] if first else random.Random(f"{seed} {group}").sample(usable, num_shots)
    return chosen


@dataclass(frozen=True)
class Prompter:
    """Renders the items of a task. `conversation`: shots are earlier turns, the question is the user's last one."""

    encoder: Encoder
    task: Task
    protocol: str
    conversation: bool
    max_length: int

    @property
    def rules(self) -> Protocol:
        return self.task.protocols[self.protocol]

    def question(self, item: Item, shots: Sequence[Item]) -> tuple[Question, int]:
        """(token ids, number of shots left out). Whole shots are left out, farthest from the question first, until
        prompt and longest choice fit max_length. Raises NoRoom if they do not even alone, UserError for a choice
        without tokens."""

        def longest(question: Question) -> int:
            if not all(question.choices):
                raise UserError(f"{item.where}: a choice has no tokens, there is nothing to score")
            return len(question.prompt) + max(map(len, question.choices))

        return self._fit(item, shots, lambda kept: self._question(item, item.prompt, kept), longest)

    def neutral_question(self, item: Item, shots: Sequence[Item]) -> Question:
        """The choices after the neutral prompt, under the same shots."""
        return self._question(item, item.neutral, shots)

    def opening(self, item: Item, shots: Sequence[Item]) -> tuple[list[int], int]:
        """(what the model goes on writing from, number of shots left out), for items that are answered freely."""

        def render(kept: Sequence[Item]) -> list[int]:
            if self.conversation:
                return self.encoder.prompt_ids(self._messages(item.group, item.prompt, kept))
            return self.encoder.prefix_ids(self._before(item.group, kept) + item.prompt)

        return self._fit(item, shots, render, lambda ids: len(ids) + self.rules.max_new_tokens)

    def _fit(
        self,
        item: Item,
        shots: Sequence[Item],
        render: Callable[[Sequence[Item]], Asked],
        length_of: Callable[[Asked], int],
    ) -> tuple[Asked, int]:
        for first in range(len(shots) + 1):
            asked = render(shots[first:])
            length = length_of(asked)
            if length <= self.max_length:
                return asked, first
        raise NoRoom(f"{item.where}: {length} tokens without any shot, the model reads {self.max_length} at most")

    def _question(self, item: Item, prompt: str, shots: Sequence[Item]) -> Question:
        if item.after is not None:
            return self._template(item, shots)
        if self.conversation:
            messages = self._messages(item.group, prompt, shots)
            ids, answers = self.encoder.prompt_and_answers(messages, [text.strip() for text in item.choices])
            # The token that ends an answer is no part of a choice.
            return Question(ids, [answer.ids[:-1] for answer in answers])
        text = self._before(item.group, shots) + prompt
        ids = self.encoder.prefix_ids(text)
        return Question(ids, self.encoder.continuations_ids(text, item.choices, ids))

    def _template(self, item: Item, shots: Sequence[Item]) -> Question:
        """The template filled in with each choice: all of its tokens are scored. A prefix language model is asked for
        what its mask token stands for, which is how it was trained; there the choice alone is scored."""
        before = self._before(item.group, shots)
        if self.encoder.is_prefix:
            ids = self.encoder.blank_ids(before + item.prompt, item.after)
            return Question(ids, self.encoder.continuations_ids("", item.choices, []))
        texts = [before + item.prompt + choice + item.after for choice in item.choices]
        context, *rows = self.encoder.prefixes_ids([before, *texts])
        if not context:  # nothing stands at the beginning of a text, but something must predict its first token
            begin = self.encoder.tokenizer.bos_token_id
            begin = self.encoder.end if begin is None else begin
            context, rows = [begin], [[begin, *row] for row in rows]
        shared = min(_common_length(rows), min(map(len, rows)) - 1)
        scored_from = min(shared, _common_length([context, rows[0]]))
        return Question(rows[0][:shared], [row[shared:] for row in rows], num_scored=shared - scored_from)

    def _before(self, group: str, shots: Sequence[Item]) -> str:
        """Instruction and solved shots, up to where the question begins."""
        instruction = self.task.instruction(group, self.protocol)
        parts = [*([instruction] if instruction else []), *(shot.solved for shot in shots)]
        return "".join(part + self.rules.separator for part in parts)

    def _messages(self, group: str, prompt: str, shots: Sequence[Item]) -> list[Message]:
        instruction = self.task.instruction(group, self.protocol)
        messages = [Message("system", instruction)] if instruction else []
        for shot in shots:
            messages += [Message("user", shot.prompt), Message("assistant", shot.answer.strip())]
        return [*messages, Message("user", prompt)]


def _common_length(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False)))

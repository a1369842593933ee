"""Items to token ids: instruction, shots and question, in a text or in a conversation."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from keju.encoding.encoder import Encoder
from keju.eval.scoring import Question
from keju.eval.task import Item, Task
from keju.records.record import Message


def pick_shots(pool: Sequence[Item], scored: Sequence[Item], num_shots: int, seed: int) -> dict[str, list[Item]]:
    """`num_shots` examples of the pool for each group of the scored items, the same for all items of the group.

    Rows with the prompt of a scored item are never taken. Raises ValueError for a pool that is too small.
    """
    prompts = {item.prompt for item in scored}
    chosen = {}
    for group in sorted({item.group for item in scored}):
        usable = [item for item in pool if item.group == group and item.gold is not None and item.prompt not in prompts]
        if len(usable) < num_shots:
            of_group = f" of {group}" if group else ""
            raise ValueError(f"--num_shots {num_shots}: there are only {len(usable)} examples{of_group} to show")
        chosen[group] = random.Random(f"{seed} {group}").sample(usable, num_shots)
    return chosen


@dataclass(frozen=True)
class Prompter:
    """Renders the items of a task. `conversation`: shots are earlier turns, the question is the user's last one."""

    encoder: Encoder
    task: Task
    protocol: str
    conversation: bool
    max_length: int

    def question(self, item: Item, shots: Sequence[Item]) -> tuple[Question, int]:
        """(token ids, number of shots left out). Whole shots are left out, farthest from the question first, until
        prompt and longest choice fit max_length. Raises ValueError if they do not even alone."""
        for first in range(len(shots) + 1):
            question = self._render(item.prompt, item.choices, item.group, shots[first:])
            if not all(question.choices):
                raise ValueError(f"{item.where}: a choice has no tokens, there is nothing to score")
            length = len(question.prompt) + max(map(len, question.choices))
            if length <= self.max_length:
                return question, first
        raise ValueError(f"{item.where}: {length} tokens without any shot, the model reads {self.max_length} at most")

    def neutral_question(self, item: Item, shots: Sequence[Item]) -> Question:
        """The choices after the neutral prompt, under the same shots."""
        return self._render(item.neutral, item.choices, item.group, shots)

    def _render(self, prompt: str, choices: Sequence[str], group: str, shots: Sequence[Item]) -> Question:
        instruction = self.task.instruction(group, self.protocol)
        render = self._conversation if self.conversation else self._text
        return render(instruction, shots, prompt, choices)

    def _text(self, instruction: str, shots: Sequence[Item], prompt: str, choices: Sequence[str]) -> Question:
        parts = [instruction] if instruction else []
        parts += [shot.prompt + shot.choices[shot.gold] for shot in shots]
        text = self.task.separator.join([*parts, prompt])
        ids = self.encoder.prefix_ids(text)
        return Question(ids, [self.encoder.continuation_ids(text, choice, ids) for choice in choices])

    def _conversation(self, instruction: str, shots: Sequence[Item], prompt: str, choices: Sequence[str]) -> Question:
        messages = [Message("system", instruction)] if instruction else []
        for shot in shots:
            messages += [Message("user", shot.prompt), Message("assistant", shot.choices[shot.gold])]
        messages.append(Message("user", prompt))
        ids = self.encoder.prompt_ids(messages)
        # The token that ends an answer is no part of a choice.
        return Question(ids, [self.encoder.answer_ids(messages, choice)[:-1] for choice in choices])

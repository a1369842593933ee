"""The largest batch that a stage may meet, made of random ids: rows that are full up to the token budget."""

from __future__ import annotations

import random
from dataclasses import dataclass

from keju.errors import UserError
from keju.models.generation import Response
from keju.rl.rollout import Rollout
from keju.stages.spec import stages
from keju.trees.segment import Segment


@dataclass(frozen=True)
class Workload:
    """Lengths in tokens, as the flags of the same names say.

    max_length: a text, or a prompt and one answer. A row holds `token_budget` tokens and `per_device_train_batch_size`
    records at most. num_responses: answers to a prompt, ranked (reward, dpo) or sampled (rlhf). Raises UserError
    naming the flag.
    """

    token_budget: int = 4096
    per_device_train_batch_size: int = 8
    max_length: int = 512
    max_prompt_length: int = 256
    max_new_tokens: int = 256
    num_responses: int = 4
    rollout_batch_size: int = 16
    num_mini_batches: int = 4
    generation_batch_size: int = 64

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise UserError(f"must be at least 1, got {value}", option=name)

    def longest(self, stage: str) -> int:
        """Tokens of the largest record, all of its answers with it; of rlhf, of a prompt with one response."""
        if stage == "rlhf":
            return self.max_prompt_length + self.max_new_tokens
        others = self.num_responses - 1 if stages()[stage].is_ranked else 0
        return self.max_length + others * (self.max_length - self.max_prompt_length)

    def check(self, stage: str) -> None:
        """Raises UserError naming the flag whose value the stage cannot work with."""
        if (stage == "sft" or stages()[stage].is_ranked) and self.max_prompt_length >= self.max_length:
            raise UserError(
                f"{self.max_prompt_length} leaves nothing of --max_length {self.max_length} to an answer",
                option="max_prompt_length",
            )
        if self.longest(stage) > self.token_budget:
            raise UserError(
                f"{self.token_budget} is too small: one record may have {self.longest(stage)} tokens "
                f"({'--max_prompt_length and --max_new_tokens' if stage == 'rlhf' else '--max_length'})",
                option="token_budget",
            )

    def trees(self, stage: str, vocab_size: int) -> list[Segment]:
        """Those of one row of pretrain, sft, reward or dpo: whole records, and a shorter one up to the budget."""
        self.check(stage)
        draw = random.Random(0)

        def ids(count: int) -> list[int]:
            return [draw.randrange(vocab_size) for _ in range(count)]

        trees, left = [], self.token_budget
        answer = self.max_length - self.max_prompt_length
        while left > 0 and len(trees) < self.per_device_train_batch_size:
            if stage == "pretrain":
                tree = Segment(ids(min(left, self.max_length)), trained=True)
            else:
                count = self.num_responses if stages()[stage].is_ranked else 1
                prompt = min(self.max_prompt_length, max(1, left // 2))
                tree = Segment(ids(prompt))
                rest = left - prompt
                for number in range(count):
                    length = min(answer, rest)
                    if length:
                        values = {"score": float(number), "ref_logprob": -1.0}
                        tree.branches.append(Segment(ids(length), trained=True, values=values))
                    rest -= length
            trees.append(tree)
            left -= tree.num_tokens
        return trees

    def rollouts(self, vocab_size: int) -> list[Rollout]:
        """What a step of rlhf samples: prompts and responses of full length."""
        self.check("rlhf")
        draw = random.Random(0)

        def ids(count: int) -> tuple[int, ...]:
            return tuple(draw.randrange(1, vocab_size) for _ in range(count))

        return [
            Rollout(
                ids(self.max_prompt_length),
                tuple(Response(ids(self.max_new_tokens), finished=True) for _ in range(self.num_responses)),
            )
            for _ in range(self.rollout_batch_size)
        ]

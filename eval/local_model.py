"""A model of this process as the one that is examined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from keju.eval.scoring import OnBatch, Question, score_questions
from keju.models.generation import generate_responses


@dataclass(frozen=True)
class LocalModel:
    """token_budget: tokens of a packed row. batch_size: answers that are written at once."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    token_budget: int = 4096
    batch_size: int = 16

    def score(self, questions: Sequence[Question], on_batch: OnBatch) -> list[list[float]]:
        return score_questions(self.model, questions, token_budget=self.token_budget, on_batch=on_batch)

    def write(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, on_batch: Callable[[dict[int, str], int], None]
    ) -> list[str]:
        """The first line of each answer that is not blank, and no more than a token of what follows."""
        texts = [""] * len(prompts)
        # Batches of their own, longest first, so that each answer is known as soon as it is there.
        order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            responses = generate_responses(
                self.model,
                self.tokenizer,
                [list(prompts[index]) for index in chosen],
                max_new_tokens=max_new_tokens,
                do_sample=False,
                batch_size=self.batch_size,
                is_complete=lambda ids: "\n" in self._text(ids).lstrip(),
            )
            done = {index: self._text(response.ids) for index, (response,) in zip(chosen, responses, strict=True)}
            for index, text in done.items():
                texts[index] = text
            on_batch(done, sum(len(response.ids) for (response,) in responses))
        return texts

    def _text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

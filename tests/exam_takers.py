"""Those who sit the examinations of the tests: one who knows every answer, one who knows none."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from keju.encoding.encoder import Encoder
from keju.eval.local_model import LocalModel


class Oracle:
    """Finds right answers by the text that the tokens stand for. `is_right(text)`: whether a text is a question with
    its right answer; `answer(text)`: what is to be written after a text."""

    def __init__(
        self, encoder: Encoder, is_right: Callable[[str], bool], answer: Callable[[str], str] = lambda text: ""
    ) -> None:
        self.encoder, self.is_right, self.answer = encoder, is_right, answer
        self.asked: list[str] = []

    def text(self, ids: Sequence[int]) -> str:
        """Letter by letter, without special tokens."""
        special = self.encoder.special_ids
        return "".join(self.encoder.tokenizer.convert_ids_to_tokens([index for index in ids if index not in special]))

    def score(self, questions, on_batch):
        scores = []
        for question in questions:
            texts = [self.text([*question.prompt, *choice]) for choice in question.choices]
            self.asked.append(self.text(question.prompt))
            # Far apart for every length that scores are divided by.
            scores.append([0.0 if self.is_right(text) else -9000.0 for text in texts])
        on_batch(dict(enumerate(scores)), 0)
        return scores

    def write(self, prompts, max_new_tokens, on_batch):
        self.asked += [self.text(prompt) for prompt in prompts]
        texts = [self.answer(self.text(prompt)) for prompt in prompts]
        on_batch(dict(enumerate(texts)), 0)
        return texts


class Indifferent:
    """Finds every choice equally likely, and writes nothing."""

    def score(self, questions, on_batch):
        scores = [[-1.0] * len(question.choices) for question in questions]
        on_batch(dict(enumerate(scores)), 0)
        return scores

    def write(self, prompts, max_new_tokens, on_batch):
        on_batch(dict.fromkeys(range(len(prompts)), ""), 0)
        return [""] * len(prompts)


def local(model, encoder: Encoder, token_budget: int = 512) -> LocalModel:
    return LocalModel(model, encoder.tokenizer, token_budget=token_budget, batch_size=4)

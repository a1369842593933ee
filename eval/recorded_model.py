"""Answers on disk as they come: an evaluation that was interrupted goes on where it was."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from keju.errors import UserError
from keju.eval.answers import Examinee
from keju.eval.scoring import OnBatch, Question
from keju.records.journal import Journal


class RecordedModel:
    """Asks `model` only what the file `path` does not hold, and appends each answer to it at once.

    Answers are found by the tokens of their question, so that it does not matter which task asked, or in which order.
    key: what the answers depend on beside the question (the weights, the precision); a file of another key is begun
    anew. num_recalled: answers that were in the file.
    """

    def __init__(self, model: Examinee, path: str | Path, key: str) -> None:
        self.model = model
        self.num_recalled = 0
        self._journal = Journal(path)
        rows = self._journal.read()
        self._is_begun = next(rows, {}).get("key") == key
        self._key = key
        self.known = {row["question"]: row["answer"] for row in rows} if self._is_begun else {}

    def score(self, questions: Sequence[Question], on_batch: OnBatch) -> list[list[float]]:
        keys = [_key(question.num_scored, question.prompt, *question.choices) for question in questions]
        return self._ask(questions, keys, self.model.score, on_batch)

    def write(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, on_batch: Callable[[dict[int, str], int], None]
    ) -> list[str]:
        keys = [_key(-max_new_tokens, prompt) for prompt in prompts]
        return self._ask(prompts, keys, lambda rest, report: self.model.write(rest, max_new_tokens, report), on_batch)

    def _ask(
        self,
        questions: Sequence[Any],
        keys: Sequence[str],
        ask: Callable[[list[Any], Callable[[dict[int, Any], int], None]], list[Any]],
        on_batch: Callable[[dict[int, Any], int], None],
    ) -> list[Any]:
        recalled = {index: self.known[key] for index, key in enumerate(keys) if key in self.known}
        if recalled:
            self.num_recalled += len(recalled)
            on_batch(recalled, 0)
        rest = [index for index in range(len(questions)) if index not in recalled]

        def report(answers: dict[int, Any], num_tokens: int) -> None:
            named = {rest[place]: answer for place, answer in answers.items()}
            self._append({keys[index]: _finite(answer) for index, answer in named.items()})
            on_batch(named, num_tokens)

        if rest:
            ask([questions[index] for index in rest], report)
        return [self.known[key] for key in keys]

    def _append(self, answers: dict[str, Any]) -> None:
        if not self._is_begun:
            self._journal.rewrite([{"key": self._key}])
            self._is_begun = True
        self.known |= answers
        self._journal.extend({"question": question, "answer": answer} for question, answer in answers.items())


def _finite(answer: Any) -> Any:
    """Raises UserError for log-probabilities that are none: they would be remembered."""
    if isinstance(answer, list) and not all(map(math.isfinite, answer)):
        raise UserError(f"the model's log-probabilities are not finite: {answer[:8]}", option="model_name_or_path")
    return answer


def _key(*parts: int | Sequence[int]) -> str:
    digest = hashlib.blake2b(digest_size=12)
    for part in parts:
        ids = array("q", [part] if isinstance(part, int) else part)
        digest.update(len(ids).to_bytes(8, "little") + ids.tobytes())
    return digest.hexdigest()

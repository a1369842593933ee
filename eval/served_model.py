"""A model behind a server as the one that is examined: the completions API of OpenAI, as vLLM and others speak it.

Prompts go out as token ids, so that the tokens scored are those that a local model would read; the tokenizer has to be
at hand. Log-likelihoods are those of an echoed prompt (`echo`, `logprobs`), which vLLM gives and OpenAI itself no
longer does. What prompts share is for the server to cache.
"""

from __future__ import annotations

import json
import math
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from keju.errors import UserError
from keju.eval.http_json import NoAnswer, post_json
from keju.eval.scoring import OnBatch, Question
from keju.records.url_keys import url_without_key


@dataclass(frozen=True)
class ServedModel:
    """url: up to "/v1". name: of the model there. batch_size: questions of one request. timeout: seconds for it;
    tries: how often a server that is busy is asked."""

    url: str
    name: str
    batch_size: int = 16
    timeout: float = 600.0
    tries: int = 5

    def score(self, questions: Sequence[Question], on_batch: OnBatch) -> list[list[float]]:
        scores: list[list[float]] = [[] for _ in questions]
        for start in range(0, len(questions), self.batch_size):
            indices = range(start, min(start + self.batch_size, len(questions)))
            rows = [[*questions[index].prompt, *choice] for index in indices for choice in questions[index].choices]
            # One token is written and thrown away: not every server takes none.
            choices = self._complete(rows, max_tokens=1, echo=True, logprobs=1)
            found = iter(zip(rows, choices, strict=True))
            for index in indices:
                first = len(questions[index].context)
                for row, choice in (next(found) for _ in questions[index].choices):
                    scores[index].append(_sum_logprobs(choice, first, len(row), self.url))
            on_batch({index: scores[index] for index in indices}, sum(map(len, rows)))
        return scores

    def write(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, on_batch: Callable[[dict[int, str], int], None]
    ) -> list[str]:
        texts: list[str] = []
        for start in range(0, len(prompts), self.batch_size):
            rows = [list(prompt) for prompt in prompts[start : start + self.batch_size]]
            choices = self._complete(rows, max_tokens=max_new_tokens)
            done = {start + place: choice["text"] for place, choice in enumerate(choices)}
            texts += done.values()
            on_batch(done, sum(map(len, rows)))
        return texts

    def _complete(self, rows: list[list[int]], **settings: Any) -> list[dict[str, Any]]:
        """The choices of one request, in the order of `rows`. Raises UserError for a server that does not answer, or
        not what was asked."""
        body = {"model": self.name, "prompt": rows, "temperature": 0, **settings}
        try:
            answer = post_json(f"{self.url.rstrip('/')}/completions", body, timeout=self.timeout, tries=self.tries)
            choices = answer.get("choices") if isinstance(answer, dict) else None
            if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
                raise NoAnswer(f"no answer with choices ({json.dumps(answer)[:200]})")
            by_row = {choice.get("index"): choice for choice in choices if isinstance(choice.get("index"), int)}
            if len(choices) != len(rows) or by_row.keys() != set(range(len(rows))):
                raise NoAnswer(f"{len(choices)} choices for {len(rows)} prompts, numbered {sorted(by_row)[:8]}")
            if not all(isinstance(choice.get("text"), str) for choice in choices):
                raise NoAnswer('a choice without "text"')
        except NoAnswer as error:
            raise UserError(f"{url_without_key(self.url)}: {error}", option="server_url") from error
        return [by_row[number] for number in range(len(rows))]


def check_url(url: str) -> None:
    """Raises UserError unless `url` is one of http or https."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UserError(
            f"{url_without_key(url)}: expected something like http://127.0.0.1:8000/v1", option="server_url"
        )


def _sum_logprobs(choice: dict[str, Any], first: int, end: int, url: str) -> float:
    """The summed log-probabilities of the tokens `first`..`end` of an echoed prompt."""
    given = choice.get("logprobs")
    logprobs = given.get("token_logprobs") if isinstance(given, dict) else None
    place = url_without_key(url)
    if not isinstance(logprobs, list) or len(logprobs) < end:
        raise UserError(
            f"{place}: the server gives no log-probabilities of the prompt (echo with logprobs)", option="server_url"
        )
    numbers = logprobs[first:end]
    if not all(isinstance(x, int | float) and not isinstance(x, bool) and -math.inf < x <= 1e-3 for x in numbers):
        raise UserError(
            f"{place}: the server gives log-probabilities that are none: {numbers[:8]}", option="server_url"
        )
    return sum(numbers)

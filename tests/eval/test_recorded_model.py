"""Answers are kept as they come: what was interrupted goes on, and nothing is asked twice."""

from __future__ import annotations

import json

import pytest
from exam_takers import Indifferent

from keju.eval.recorded_model import RecordedModel
from keju.eval.scoring import Question


class Interrupted(Exception):
    pass


class Slow:
    """Answers two at a time, and counts; after `limit` batches it is interrupted."""

    def __init__(self, limit: int = 10**9) -> None:
        self.limit, self.asked = limit, []

    def _batches(self, questions, answer, on_batch):
        answers = []
        for start in range(0, len(questions), 2):
            if self.limit == 0:
                raise Interrupted
            self.limit -= 1
            part = list(questions[start : start + 2])
            self.asked += part
            answers += [answer(question) for question in part]
            on_batch({start + place: answer(question) for place, question in enumerate(part)}, 7)
        return answers

    def score(self, questions, on_batch):
        return self._batches(
            questions, lambda q: [-float(sum(choice)) - q.num_scored for choice in q.choices], on_batch
        )

    def write(self, prompts, max_new_tokens, on_batch):
        return self._batches(prompts, lambda ids: f"{sum(ids)}\u2028{max_new_tokens}", on_batch)


QUESTIONS = [Question([1, number], [[number], [7, 8]]) for number in range(7)]
QUESTIONS.append(Question([1, 0], [[0], [7, 8]], num_scored=1))
QUESTIONS += [Question([1, 2], [[7], [8, 9]]), Question([1, 2], [[7, 8], [9]])]  # the same tokens, cut elsewhere


def test_an_interrupted_run_goes_on_where_it_was(tmp_path):
    path, whole = tmp_path / "scores.jsonl", Slow().score(QUESTIONS, lambda done, tokens: None)
    first = Slow(limit=2)
    with pytest.raises(Interrupted):
        RecordedModel(first, path, "k").score(QUESTIONS, lambda done, tokens: None)
    with path.open("a", encoding="utf-8") as file:
        file.write('{"question": "cut sho')
    second, told = Slow(), []
    model = RecordedModel(second, path, "k")
    scores = model.score(QUESTIONS, lambda done, tokens: told.append((done, tokens)))
    assert scores == whole
    assert len(first.asked) == 4 and second.asked == QUESTIONS[4:] and model.num_recalled == 4
    assert {index: answer for done, _ in told for index, answer in done.items()} == dict(enumerate(whole))
    assert told[0][1] == 0
    third = RecordedModel(Slow(), path, "k")
    assert third.score(QUESTIONS, lambda done, tokens: None) == whole and not third.model.asked
    for line in path.read_text(encoding="utf-8").splitlines():
        json.loads(line)


def test_written_answers_too(tmp_path):
    prompts = [[1, 2], [3], [4, 5, 6]]
    whole = Slow().write(prompts, 9, lambda done, tokens: None)
    with pytest.raises(Interrupted):
        RecordedModel(Slow(limit=1), tmp_path / "s", "k").write(prompts, 9, lambda done, tokens: None)
    model = RecordedModel(Slow(), tmp_path / "s", "k")
    assert model.write(prompts, 9, lambda done, tokens: None) == whole and model.num_recalled == 2
    assert model.write(prompts, 8, lambda done, tokens: None) != whole


def test_answers_of_another_model_do_not_count(tmp_path):
    RecordedModel(Slow(), tmp_path / "s", "k").score(QUESTIONS, lambda done, tokens: None)
    other = RecordedModel(Indifferent(), tmp_path / "s", "other")
    assert other.score(QUESTIONS, lambda done, tokens: None) == [[-1.0, -1.0]] * len(QUESTIONS)
    assert other.num_recalled == 0

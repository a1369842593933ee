"""Scores of trees are log-likelihoods of single full rows, whatever is shared, split or packed."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from tiny_models import SOP, build_llama, opening, row_inputs

from keju.eval.scoring import Question, bundle, score_questions

VOCABULARY = 40


def few_shot_questions(seed: int = 0, end: Sequence[int] = ()) -> list[Question]:
    """Prompts that end in `end`: two subjects with long shots, questions of all lengths, 2 to 5 choices of 1 to 7
    tokens; some alone."""
    rng = random.Random(seed)

    def ids(low: int, high: int) -> list[int]:
        return [rng.randrange(SOP + 2, VOCABULARY) for _ in range(rng.randint(low, high))]

    questions = []
    for shots in (ids(30, 30), ids(20, 20), []):
        for _ in range(6):
            choices = [ids(1, 7) for _ in range(rng.randint(2, 5))]
            questions.append(Question([1, *shots, *ids(1, 9), *end], choices))
    questions.append(Question([1, *end], [[15], [16], [7, 8]]))
    questions.append(Question([9, *end], [[15], [15, 16]]))
    # equal prompts, as those of unconditional normalisation are
    for prompt in (questions[0].prompt, [30, *ids(9, 9), *end]):
        questions += [Question(prompt, [choice]) for choice in ([7, 8], [15], [8, 8], [16], [9])]
    rng.shuffle(questions)
    return questions


@torch.no_grad()
def one_by_one(model, question: Question) -> list[float]:
    sums = []
    for choice in question.choices:
        row = [*question.prompt, *choice]
        logprobs = model(**row_inputs(model, [row]), use_cache=False).logits[0].double().log_softmax(-1)
        scored = range(len(question.prompt) - question.num_scored, len(row))
        sums.append(sum(logprobs[place - 1, row[place]].item() for place in scored))
    return sums


@pytest.mark.parametrize("token_budget", [90, 400, 4096])
def test_scores_equal_single_rows(causal_lm, token_budget):
    questions = few_shot_questions(end=opening(causal_lm))
    seen = []
    scores = score_questions(
        causal_lm, questions, token_budget=token_budget, on_batch=lambda done, tokens: seen.append((done, tokens))
    )
    assert max(tokens for _, tokens in seen) <= token_budget
    told = {index: sums for done, _ in seen for index, sums in done.items()}
    assert sum(len(done) for done, _ in seen) == len(questions)
    assert [told[index] for index in range(len(questions))] == scores
    for question, got in zip(questions, scores, strict=True):
        assert got == pytest.approx(one_by_one(causal_lm, question), abs=1e-5)


def test_shared_prompts_are_computed_once():
    questions = few_shot_questions()
    bundles = bundle(questions, 4096)
    assert sorted(index for item in bundles for index in item.members) == list(range(len(questions)))
    tokens = sum(
        item.shared + sum(questions[index].length_after(item.shared) for index in item.members) for item in bundles
    )
    separate = sum(len(question.prompt) + len(choice) for question in questions for choice in question.choices)
    assert tokens < separate / 2.8
    assert {item.shared for item in bundles if len(item.members) > 2} >= {21, 31}


@pytest.mark.parametrize("token_budget", [90, 400])
def test_scored_prompts_count_as_if_each_choice_began_with_them(token_budget):
    model, rng = build_llama(vocab_size=VOCABULARY), random.Random(4)
    questions = [
        Question(question.prompt, question.choices, num_scored=rng.randint(0, len(question.prompt) - 1))
        for question in few_shot_questions()
    ]
    # Some share all that is not scored, and one is scored from its second token on.
    shots = questions[0].prompt[:12]
    questions += [Question([*shots, *tail], [[7], [8, 9]], num_scored=len(tail)) for tail in ([], [5], [5, 6], [30])]
    questions.append(Question([1, 9, 9], [[7], [8, 9]], num_scored=2))
    scores = score_questions(model, questions, token_budget=token_budget)
    for question, got in zip(questions, scores, strict=True):
        assert got == pytest.approx(one_by_one(model, question), abs=1e-5)


def test_what_is_scored_is_not_shared():
    """A scored token belongs to one question; before it, everything is shared."""
    questions = [Question([1, 5, 6, 7, end], [[8]], num_scored=2) for end in (10, 11, 12)]
    (item,) = bundle(questions, 100)
    assert item.shared == 2 and set(item.members) == {0, 1, 2}


def test_choices_of_one_token_cost_nothing():
    question = Question([1, 5, 6], [[7], [8], [9]])
    assert question.length_after(0) == 3


def test_choices_that_do_not_fit_together_are_split():
    model, rng = build_llama(vocab_size=VOCABULARY), random.Random(2)
    long = [[rng.randrange(5, VOCABULARY) for _ in range(length)] for length in (30, 1, 25, 40, 2, 3)]
    questions = [Question([1, 5, 6, 7], long, num_scored=2), Question([1, 5, 6, 7], [[8], [9, 10]])]
    told = []
    scores = score_questions(model, questions, token_budget=50, on_batch=lambda *batch: told.append(batch))
    for question, got in zip(questions, scores, strict=True):
        assert got == pytest.approx(one_by_one(model, question), abs=1e-5)
    assert max(tokens for _, tokens in told) <= 50 and len(told) > 2
    # A question is done when all of its choices are, once.
    assert [index for done, _ in told for index in done].count(0) == 1
    assert {index: sums for done, _ in told for index, sums in done.items()} == dict(enumerate(scores))


def test_a_question_beyond_the_budget_is_an_error(causal_lm):
    with pytest.raises(ValueError, match="token_budget: 10: a question takes 22 tokens with a choice"):
        score_questions(causal_lm, [Question([1] * 20, [[15, 16, 7], [15, 16, 8]])], token_budget=10)

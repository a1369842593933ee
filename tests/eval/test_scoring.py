"""Scores of trees are log-likelihoods of single full rows, whatever is shared, split or packed."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from tiny_models import SOP, opening, row_inputs

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
        inputs = row_inputs(model, [[*question.prompt, *choice]])
        logprobs = model(**inputs, use_cache=False).logits[0].double().log_softmax(-1)
        first = len(question.prompt)
        sums.append(sum(logprobs[first + place - 1, token].item() for place, token in enumerate(choice)))
    return sums


@pytest.mark.parametrize("token_budget", [90, 400, 4096])
def test_scores_equal_single_rows(causal_lm, token_budget):
    questions = few_shot_questions(end=opening(causal_lm))
    seen = []
    scores = score_questions(
        causal_lm, questions, token_budget=token_budget, on_batch=lambda count, tokens: seen.append((count, tokens))
    )
    assert sum(count for count, _ in seen) == len(questions)
    assert max(tokens for _, tokens in seen) <= token_budget
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


def test_choices_of_one_token_cost_nothing():
    question = Question([1, 5, 6], [[7], [8], [9]])
    assert question.length_after(0) == 3


def test_a_question_beyond_the_budget_is_an_error(causal_lm):
    with pytest.raises(ValueError, match="--token_budget 10: a question takes 24 tokens"):
        score_questions(causal_lm, [Question([1] * 20, [[15, 16, 7], [15, 16, 8]])], token_budget=10)

"""From log-likelihoods of choices to a decision and a share of right ones."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment


@dataclass(frozen=True)
class ChoiceScores:
    """For each choice: log-likelihood of what is scored, that after the neutral prompt (None without one), and the
    characters and tokens of what is scored."""

    logprobs: tuple[float, ...]
    neutral: tuple[float, ...] | None
    num_characters: tuple[int, ...]
    num_tokens: tuple[int, ...]


def acc(scores: ChoiceScores) -> list[float]:
    """Summed log-likelihood: favours short choices."""
    return list(scores.logprobs)


def acc_norm(scores: ChoiceScores) -> list[float]:
    """Log-likelihood per character (per character, not token: models with other vocabularies stay comparable)."""
    return [logprob / length for logprob, length in zip(scores.logprobs, scores.num_characters, strict=True)]


def acc_token(scores: ChoiceScores) -> list[float]:
    """Log-likelihood per token: of a filled template the negative logarithm of its perplexity."""
    return [logprob / length for logprob, length in zip(scores.logprobs, scores.num_tokens, strict=True)]


def acc_pmi(scores: ChoiceScores) -> list[float] | None:
    """Pointwise mutual information of question and choice: what the question adds to the choice's log-likelihood
    (unconditional normalisation, Brown et al. 2020; Holtzman et al. 2021)."""
    if scores.neutral is None:
        return None
    return [logprob - alone for logprob, alone in zip(scores.logprobs, scores.neutral, strict=True)]


METRICS = {"acc": acc, "acc_norm": acc_norm, "acc_token": acc_token, "acc_pmi": acc_pmi}


def credit(scores: Sequence[float], gold: int) -> float:
    """1 if the gold choice alone scores highest, 1 / k if it shares the highest score with k - 1 others, else 0.

    So a model that cannot tell the choices apart scores exactly chance, wherever the gold choices stand.
    """
    best = max(scores)
    return 1 / list(scores).count(best) if scores[gold] == best else 0.0


def choice_mass(logprobs: Sequence[float]) -> float:
    """The probability that the model writes one of the choices, 0..1. When it is small, the model expects something
    else there (another letter case, a blank first), and what its choices are worth is in doubt.

    A choice that another one begins with counts twice; the sum is cut at 1.
    """
    return min(1.0, sum(math.exp(logprob) for logprob in logprobs))


def solve_jointly(passages: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, list[int]]:
    """The choice of each question (a row of scores) of each passage, no choice twice: the assignment with the highest
    sum (Kuhn 1955). Where a passage has more questions than choices, each question is by itself.

    Among equal sums the name of the passage draws, so that the order in a file decides nothing.
    """
    return {name: _assign(np.asarray(scores, dtype=float), name) for name, scores in passages.items()}


def _assign(scores: np.ndarray, name: str) -> list[int]:
    questions, choices = scores.shape
    order = list(range(choices))
    random.Random(name).shuffle(order)
    if questions > choices:
        return [order[place] for place in scores[:, order].argmax(1)]
    _, places = linear_sum_assignment(scores[:, order], maximize=True)
    return [order[place] for place in places]

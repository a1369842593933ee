"""From log-likelihoods of choices to a decision and a share of right ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ChoiceScores:
    """For each choice: log-likelihood after the prompt, after the neutral prompt (None without one), and characters."""

    logprobs: tuple[float, ...]
    neutral: tuple[float, ...] | None
    num_characters: tuple[int, ...]


def acc(scores: ChoiceScores) -> list[float]:
    """Summed log-likelihood: favours short choices."""
    return list(scores.logprobs)


def acc_norm(scores: ChoiceScores) -> list[float]:
    """Log-likelihood per character (per character, not token: models with other vocabularies stay comparable)."""
    return [logprob / length for logprob, length in zip(scores.logprobs, scores.num_characters, strict=True)]


def acc_pmi(scores: ChoiceScores) -> list[float] | None:
    """Pointwise mutual information of question and choice: what the question adds to the choice's log-likelihood
    (unconditional normalisation, Brown et al. 2020; Holtzman et al. 2021)."""
    if scores.neutral is None:
        return None
    return [logprob - alone for logprob, alone in zip(scores.logprobs, scores.neutral, strict=True)]


METRICS = {"acc": acc, "acc_norm": acc_norm, "acc_pmi": acc_pmi}


def credit(scores: Sequence[float], gold: int) -> float:
    """1 if the gold choice alone scores highest, 1 / k if it shares the highest score with k - 1 others, else 0.

    So a model that cannot tell the choices apart scores exactly chance, wherever the gold choices stand.
    """
    best = max(scores)
    return 1 / list(scores).count(best) if scores[gold] == best else 0.0

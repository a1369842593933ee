"""How well rewards order answers that people, or a corpus, have ranked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from statistics import fmean, pstdev
from typing import Any, NamedTuple

import numpy as np

from keju.errors import UserError
from keju.eval.statistics import wilson_interval


class Pair(NamedTuple):
    """Scores of a better and a worse answer, and how much higher the model rewards the better one."""

    better: float
    worse: float
    margin: float

    @property
    def credit(self) -> float:
        """1 for the right order, a half for equal rewards, 0 for the wrong order."""
        return (self.margin > 0) + 0.5 * (self.margin == 0)


@dataclass(frozen=True)
class RankedAnswers:
    """scores: of the record, higher is better. rewards: of the model, one for each answer in the same order."""

    scores: tuple[float, ...]
    rewards: tuple[float, ...]

    def pairs(self) -> list[Pair]:
        """All pairs of answers with different scores."""
        answers = list(zip(self.scores, self.rewards, strict=True))
        return [
            Pair(better[0], worse[0], better[1] - worse[1])
            for better, worse in permutations(answers, 2)
            if better[0] > worse[0]
        ]

    def best_first(self) -> float:
        """1 if an answer of the best score has the highest reward; answers that share that reward share the credit."""
        best, highest = max(self.scores), max(self.rewards)
        top = [score for score, reward in zip(self.scores, self.rewards, strict=True) if reward == highest]
        return top.count(best) / len(top)


def reward_figures(records: Sequence[RankedAnswers]) -> dict[str, Any]:
    """Pairwise accuracy with its 95% interval, loss, margins, how often the best answer comes first, and the rewards of
    each score. Raises UserError when no two answers of a prompt differ in score.

    Pairs of a prompt share answers, which makes the interval of `accuracy` somewhat too narrow; `best_first` has one
    decision a prompt.
    """
    ranked = [record for record in records if record.pairs()]
    if not ranked:
        raise UserError("all answers of every prompt have the same score: there is nothing to compare")
    pairs = [pair for record in ranked for pair in record.pairs()]
    right, first = sum(pair.credit for pair in pairs), sum(record.best_first() for record in ranked)
    return {
        "accuracy": right / len(pairs),
        "interval": list(wilson_interval(right, len(pairs))),
        "chance": 0.5,
        "num_pairs": len(pairs),
        "num_prompts": len(ranked),
        "loss": fmean(_softplus(-pair.margin) for pair in pairs),
        "margin": _spread([pair.margin for pair in pairs]),
        "best_first": first / len(ranked),
        "best_first_interval": list(wilson_interval(first, len(ranked))),
        "best_first_chance": fmean(record.scores.count(max(record.scores)) / len(record.scores) for record in ranked),
        "accuracy_by_scores": _accuracy_by_scores(pairs),
        "rewards_by_score": {score: _spread(rewards) for score, rewards in rewards_by_score(records).items()},
        "histogram": histogram(rewards_by_score(records)),
    }


def rewards_by_score(records: Sequence[RankedAnswers]) -> dict[str, list[float]]:
    """Rewards of all answers with the same score, best score first."""
    groups: dict[float, list[float]] = {}
    for record in records:
        for score, reward in zip(record.scores, record.rewards, strict=True):
            groups.setdefault(score, []).append(reward)
    return {f"{score:g}": groups[score] for score in sorted(groups, reverse=True)}


def histogram(groups: Mapping[str, Sequence[float]], bins: int = 40) -> dict[str, Any]:
    """`edges` (bins + 1 numbers) that all groups share, and the `counts` of each group."""
    edges = np.histogram_bin_edges(np.concatenate([np.asarray(group, dtype=float) for group in groups.values()]), bins)
    counts = {name: np.histogram(group, edges)[0].tolist() for name, group in groups.items()}
    return {"edges": edges.tolist(), "counts": counts}


def _accuracy_by_scores(pairs: Sequence[Pair]) -> dict[str, dict[str, float]]:
    """Accuracy and number of the pairs of each two scores: easy mistakes and hard ones apart."""
    groups: dict[tuple[float, float], list[float]] = {}
    for pair in pairs:
        groups.setdefault((pair.better, pair.worse), []).append(pair.credit)
    return {
        f"{better:g} > {worse:g}": {"accuracy": fmean(groups[better, worse]), "count": len(groups[better, worse])}
        for better, worse in sorted(groups, reverse=True)
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    shares = {f"p{share}": float(np.percentile(values, share)) for share in (5, 50, 95)}
    return {"mean": fmean(values), "std": pstdev(values), **shares, "count": len(values)}


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))

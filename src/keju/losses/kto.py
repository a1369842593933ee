"""KTO (Ethayarajh et al. 2024, arXiv 2402.01306): answers that are good or bad by themselves, without pairs."""

from __future__ import annotations

import torch
from torch import Tensor


def kto_loss(
    log_ratio: Tensor,
    desirable: Tensor,
    reference_point: Tensor | float,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """lambda_D (1 - sigmoid(beta (r - z))) of desirable answers, lambda_U (1 - sigmoid(beta (z - r))) of the others.

    log_ratio float [A], r = log pi(y|x) - log pi_ref(y|x); desirable bool [A]; reference_point: z, see below.
    Equation 8, with lambda - v as the loss. Returns [A].
    """
    distance = torch.where(desirable, log_ratio - reference_point, reference_point - log_ratio)
    weight = torch.where(desirable, desirable_weight, undesirable_weight)
    return weight * (1 - torch.sigmoid(beta * distance))


def reference_point(mismatched_log_ratio: Tensor) -> Tensor:
    """z = max(0, mean log-ratio of answers to other prompts), []: the paper's estimate of KL(pi || pi_ref).

    Without gradient; 0 where there is no such answer.
    """
    if not len(mismatched_log_ratio):
        return mismatched_log_ratio.new_zeros(())
    return mismatched_log_ratio.detach().mean().clamp(min=0)


def desirable_answers(scores: Tensor, tree: Tensor, marks: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Which answers are good, and which are bad: bool [S], bool [S].

    An answer with a mark of its own is what that says; another one is good above the mean score of its prompt's
    answers, bad below it, and neither at the mean.
    scores float [S] (NaN: the segment is no ranked answer), tree int64 [S], marks float [S] (1, 0, NaN for none).
    """
    is_answer = ~scores.isnan()
    known = torch.where(is_answer, scores, 0.0)
    num_trees = int(tree.max()) + 1
    total = known.new_zeros(num_trees).index_add(0, tree, known)
    count = known.new_zeros(num_trees).index_add(0, tree, is_answer.to(known.dtype))
    mean = (total / count.clamp(min=1))[tree]
    good, bad = is_answer & (known > mean), is_answer & (known < mean)
    if marks is None:
        return good, bad
    unmarked = marks.isnan()
    return (unmarked & good) | (marks == 1), (unmarked & bad) | (marks == 0)

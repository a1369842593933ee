"""KTO on answers that are marked as good or bad, or ranked: good above the mean score of their prompt, bad below."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from keju.losses.kto import desirable_answers, kto_loss, reference_point
from keju.losses.pairs import ordered_pairs
from keju.models.backbone import tree_logprobs
from keju.training.objectives.objective import Objective, ObjectiveOutput
from keju.training.objectives.preference import METRICS, preference_metrics, segment_sums
from keju.training.whole_batch import WholeBatch
from keju.trees.lazy_trees import LazyTrees, lengths_of
from keju.trees.packed_batch import PackedBatch
from keju.trees.segment import Segment


class KTOObjective(Objective):
    """Expects `ref_logprob` of every branch, `score` of the ranked ones, `is_good` of the marked ones, and branches of
    MismatchedAnswers.

    The reference point (the KL of the policy to the reference) is estimated on the mismatched answers of a whole batch.
    """

    item_name = "answer"
    metric_names = (*METRICS, "kl", "reward_good", "reward_bad")
    facts_from = "model"
    needs_reference = True

    def __init__(self, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0) -> None:
        self.settings = {
            "beta": beta,
            "desirable_weight": desirable_weight,
            "undesirable_weight": undesirable_weight,
        }
        self.beta = beta

    def num_items(self, batch: PackedBatch) -> int:
        good, bad = _labels(batch)
        return int((good | bad).sum())

    def margins(self, model: nn.Module, batch: PackedBatch) -> torch.Tensor:
        """[P]: the implicit reward of the better answer of each pair minus that of the worse."""
        logprobs = segment_sums(tree_logprobs(model, batch).logprobs, batch)
        rewards = self.beta * (logprobs - batch.values["ref_logprob"])
        winner, loser = ordered_pairs(batch.values["score"], batch.segment_tree)
        return rewards[winner] - rewards[loser]

    def facts(self, model: nn.Module, batch: PackedBatch) -> torch.Tensor:
        """[M, 1]: log-ratios of the mismatched answers."""
        log_ratio = segment_sums(tree_logprobs(model, batch).logprobs, batch) - batch.values["ref_logprob"]
        return log_ratio[_is_mismatched(batch), None]

    def __call__(self, model: nn.Module, batch: PackedBatch, whole: WholeBatch | None = None) -> ObjectiveOutput:
        logprobs = segment_sums(tree_logprobs(model, batch).logprobs, batch)
        log_ratio = logprobs - batch.values["ref_logprob"]
        scores = batch.values["score"]
        good, bad = _labels(batch)
        point = reference_point(log_ratio[_is_mismatched(batch)] if whole is None else whole.facts[:, 0])
        labelled = good | bad
        losses = kto_loss(log_ratio[labelled], good[labelled], point, **self.settings)
        with torch.no_grad():
            winner, loser = ordered_pairs(scores, batch.segment_tree)
            rewards = self.beta * log_ratio
            metrics = preference_metrics(rewards[winner], rewards[loser], logprobs[winner], logprobs[loser])
            metrics["kl"] = (point, 1)
            for name, members in (("reward_good", good), ("reward_bad", bad)):
                metrics[name] = (rewards[members].sum(), int(members.sum()))
        return ObjectiveOutput(losses.sum(), metrics)


def _labels(batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
    return desirable_answers(batch.values["score"], batch.segment_tree, batch.values.get("is_good"))


def _is_mismatched(batch: PackedBatch) -> torch.Tensor:
    return batch.values["score"].isnan() & (batch.segment_parent >= 0)


class MismatchedAnswers(LazyTrees):
    """Each tree with one more branch, an answer to another prompt, without a score: what KTO's KL is estimated on.

    It is computed in the same pass as the tree's own answers. Trees that would outgrow the budget stay as they are.
    """

    def __init__(self, trees: Sequence[Segment], token_budget: int) -> None:
        self._trees = trees
        self.lengths = lengths_of(trees).copy()
        self._is_widened = np.zeros(len(trees), bool)
        self._next = _next_of_another_prompt(trees)
        for index in np.flatnonzero(self._next != np.arange(len(trees))).tolist():
            length = len(self._other(index).tokens)
            if self.lengths[index] + length <= token_budget:
                self.lengths[index] += length
                self._is_widened[index] = True

    def _other(self, index: int) -> Segment:
        others = self._trees[int(self._next[index])].branches
        return others[index % len(others)]

    def item(self, index: int) -> Segment:
        tree = self._trees[index]
        if not self._is_widened[index]:
            return tree
        other = self._other(index)
        return Segment(tree.tokens, tree.trained, [*tree.branches, Segment(other.tokens, other.trained)])


def _next_of_another_prompt(trees: Sequence[Segment]) -> np.ndarray:
    """For each tree the first one after it, in a circle, that has another prompt; itself where all have one prompt.

    Rows of one prompt follow each other in files of marked answers.
    """
    places = np.arange(len(trees))
    prompts = np.fromiter((hash(tuple(tree.tokens)) for tree in trees), np.int64, len(trees))
    starts = np.flatnonzero(prompts != np.roll(prompts, 1))  # of runs of one prompt, in the circle
    if not len(starts):
        return places
    return starts[np.searchsorted(starts, places, side="right") % len(starts)]

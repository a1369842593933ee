"""One number for each answer of many prompts: its reward, or its log-probability."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from keju.models.backbone import tree_logprobs, tree_token_scores
from keju.trees.packed_batch import PackedBatch
from keju.trees.packing import pack
from keju.trees.segment import Segment


def answer_rewards(
    model: nn.Module, trees: Sequence[Segment], *, token_budget: int, on_tree: Callable[[int], None] = lambda n: None
) -> list[list[float]]:
    """For each tree the reward of each of its branches, in order: the scalar head at the branch's last token."""

    def rewards(batch: PackedBatch) -> list[float]:
        return tree_token_scores(model, batch)[batch.segment_end - 1, 0].tolist()

    return _of_branches(model, trees, rewards, token_budget, on_tree)


def answer_logprobs(
    model: nn.Module, trees: Sequence[Segment], *, token_budget: int, on_tree: Callable[[int], None] = lambda n: None
) -> list[list[float]]:
    """For each tree the log-probability of each of its branches given the root, summed over trained tokens."""

    def logprobs(batch: PackedBatch) -> list[float]:
        tokens = tree_logprobs(model, batch).logprobs
        return tokens.new_zeros(batch.num_segments).index_add(0, batch.target_segment, tokens).tolist()

    return _of_branches(model, trees, logprobs, token_budget, on_tree)


def answer_token_logprobs(
    model: nn.Module, trees: Sequence[Segment], *, token_budget: int, on_tree: Callable[[int], None] = lambda n: None
) -> list[list[list[float]]]:
    """For each tree the log-probability of each trained token of each of its branches."""

    def logprobs(batch: PackedBatch) -> list[list[float]]:
        lengths = batch.target_segment.bincount(minlength=batch.num_segments).tolist()
        return [tokens.tolist() for tokens in tree_logprobs(model, batch).logprobs.split(lengths)]

    return _of_branches(model, trees, logprobs, token_budget, on_tree)


@torch.no_grad()
def _of_branches(model, trees, segment_numbers, token_budget, on_tree) -> list[list[float]]:
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    results = [[] for _ in trees]
    for members in pack([tree.num_tokens for tree in trees], token_budget):
        batch = PackedBatch.from_trees([trees[index] for index in members]).to(device)
        numbers = segment_numbers(batch)
        for number, tree, parent in zip(
            numbers, batch.segment_tree.tolist(), batch.segment_parent.tolist(), strict=True
        ):
            if parent >= 0:
                results[members[tree]].append(number)
        on_tree(len(members))
    model.train(was_training)
    return results


def by_score(trees: Sequence[Segment], rewards: Sequence[Sequence[float]]) -> Iterator[tuple[float, float]]:
    """(score in the record, number of the model) of every answer."""
    for tree, numbers in zip(trees, rewards, strict=True):
        for branch, number in zip(tree.branches, numbers, strict=True):
            yield branch.values["score"], number

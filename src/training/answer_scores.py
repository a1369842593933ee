"""One number for each answer of many prompts: its reward, or its log-probability.

`model`: a model, or the StageModel around it, or (ZeRO-3) the engine around that. All processes of a run must call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from keju.encoding.token_store import lengths_of
from keju.models.backbone import tree_logprobs, tree_token_scores
from keju.training.processes import num_processes, own_parts, sum_over_processes
from keju.training.stage_model import passes_of
from keju.trees.packed_batch import PackedBatch
from keju.trees.packing import pack
from keju.trees.segment import Segment


def answer_rewards(
    model: nn.Module, trees: Sequence[Segment], *, token_budget: int, on_tree: Callable[[int], None] = lambda n: None
) -> list[list[float]]:
    """For each tree the reward of each of its branches, in order: the scalar head at the branch's last token."""

    def rewards(model: nn.Module, batch: PackedBatch) -> list[Tensor]:
        return list(tree_token_scores(model, batch)[batch.segment_end - 1, :1])

    return _numbers(_of_branches(model, trees, rewards, token_budget, on_tree))


def answer_logprobs(
    model: nn.Module, trees: Sequence[Segment], *, token_budget: int, on_tree: Callable[[int], None] = lambda n: None
) -> list[list[float]]:
    """For each tree the log-probability of each of its branches given the root, summed over trained tokens."""

    def logprobs(model: nn.Module, batch: PackedBatch) -> list[Tensor]:
        tokens = tree_logprobs(model, batch).logprobs
        return list(tokens.new_zeros(batch.num_segments, 1).index_add(0, batch.target_segment, tokens[:, None]))

    return [
        [float(number) for number in found] for found in _of_branches(model, trees, logprobs, token_budget, on_tree)
    ]


def answer_token_logprobs(
    model: nn.Module, trees: Sequence[Segment], *, token_budget: int, on_tree: Callable[[int], None] = lambda n: None
) -> list[list[list[float]]]:
    """For each tree the log-probability of each trained token of each of its branches."""

    def logprobs(model: nn.Module, batch: PackedBatch) -> list[Tensor]:
        lengths = batch.target_segment.bincount(minlength=batch.num_segments).tolist()
        return list(tree_logprobs(model, batch).logprobs.split(lengths))

    found = _of_branches(model, trees, logprobs, token_budget, on_tree, size=lambda branch: sum(branch.trained_flags))
    return [[numbers.tolist() for numbers in branches] for branches in found]


@torch.no_grad()
def _of_branches(
    model: nn.Module,
    trees: Sequence[Segment],
    read: Callable[[nn.Module, PackedBatch], list[Tensor]],
    token_budget: int,
    on_tree: Callable[[int], None],
    size: Callable[[Segment], int] = lambda branch: 1,
) -> list[list[Tensor]]:
    """What `read` gives for each segment of a pack (`size` numbers), of the branches of each tree.

    The packs are shared out among the processes of the run, which all end up with all numbers.
    """
    if not trees:
        return []
    passes = passes_of(model)
    was_training = model.training
    model.eval()
    packs = pack(lengths_of(trees), token_budget)
    sizes = [[size(branch) for branch in tree.branches] for tree in trees]
    own: dict[int, Tensor] = {}
    for number, (members, counts) in enumerate(own_parts(packs)):
        batch = PackedBatch.from_trees([trees[index] for index in members])
        found = passes(batch, read)
        branches: list[list[Tensor]] = [[] for _ in members]
        for numbers, tree, parent in zip(
            found, batch.segment_tree.tolist(), batch.segment_parent.tolist(), strict=True
        ):
            if parent >= 0:
                branches[tree].append(numbers)
        if counts:
            own |= {index: torch.cat(numbers) for index, numbers in zip(members, branches, strict=True) if numbers}
        on_tree(sum(map(len, packs[number * num_processes() : (number + 1) * num_processes()])))
    model.train(was_training)
    blank = found[0].new_zeros(0)
    flat = torch.cat([own.get(index, blank.new_zeros(sum(of_tree))) for index, of_tree in enumerate(sizes)])
    every = iter(sum_over_processes(flat).split([number for of_tree in sizes for number in of_tree]))
    return [[next(every) for _ in of_tree] for of_tree in sizes]


def _numbers(found: list[list[Tensor]]) -> list[list[float]]:
    return [[float(number) for number in branches] for branches in found]


def by_score(trees: Sequence[Segment], rewards: Sequence[Sequence[float]]) -> Iterator[tuple[float, float]]:
    """(score in the record, number of the model) of every answer."""
    for tree, numbers in zip(trees, rewards, strict=True):
        for branch, number in zip(tree.branches, numbers, strict=True):
            yield branch.values["score"], number

"""One number for each answer of many prompts: its reward, or its log-probability.

`model`: a model, or the StageModel around it, or (ZeRO-3) the engine around that. All processes of a run must call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from keju.models.backbone import tree_logprobs, tree_token_scores
from keju.models.evaluating import evaluating
from keju.training.processes import num_processes, own_parts, sum_over_processes
from keju.training.stage_model import passes_of
from keju.trees.lazy_trees import lengths_of
from keju.trees.packed_batch import PackedBatch
from keju.trees.packing import pack_arrays
from keju.trees.segment import Segment


@dataclass
class BranchNumbers:
    """Numbers of the branches of trees. flat: [all of them]; those of tree t are flat[starts[t] : starts[t + 1]],
    branch after branch. starts: int64 [trees + 1]."""

    flat: np.ndarray
    starts: np.ndarray

    def of(self, tree: int) -> np.ndarray:
        return self.flat[self.starts[tree] : self.starts[tree + 1]]


def answer_rewards(
    model: nn.Module, trees: Sequence[Segment], *, token_budget: int, on_tree: Callable[[int], None] = lambda n: None
) -> list[list[float]]:
    """For each tree the reward of each of its branches, in order: the scalar head at the branch's last token."""

    def rewards(model: nn.Module, batch: PackedBatch) -> list[Tensor]:
        return list(tree_token_scores(model, batch)[batch.segment_end - 1, :1])

    found = _of_branches(model, trees, rewards, token_budget, on_tree, branch_counts(trees))
    return [found.of(index).tolist() for index in range(len(trees))]


def answer_logprobs(
    model: nn.Module, trees: Sequence[Segment], *, token_budget: int, on_tree: Callable[[int], None] = lambda n: None
) -> BranchNumbers:
    """The log-probability of each branch of each tree given the root, summed over trained tokens."""

    def logprobs(model: nn.Module, batch: PackedBatch) -> list[Tensor]:
        tokens = tree_logprobs(model, batch).logprobs
        return list(tokens.new_zeros(batch.num_segments, 1).index_add(0, batch.target_segment, tokens[:, None]))

    return _of_branches(model, trees, logprobs, token_budget, on_tree, branch_counts(trees))


def answer_token_logprobs(
    model: nn.Module, trees: Sequence[Segment], *, token_budget: int, on_tree: Callable[[int], None] = lambda n: None
) -> BranchNumbers:
    """The log-probability of each trained token of each branch of each tree."""

    def logprobs(model: nn.Module, batch: PackedBatch) -> list[Tensor]:
        lengths = batch.target_segment.bincount(minlength=batch.num_segments).tolist()
        return list(tree_logprobs(model, batch).logprobs.split(lengths))

    return _of_branches(model, trees, logprobs, token_budget, on_tree, trained_counts(trees))


def branch_counts(trees: Sequence[Segment]) -> np.ndarray:
    """int64 [trees]."""
    return np.fromiter((len(tree.branches) for tree in trees), np.int64, len(trees))


def trained_counts(trees: Sequence[Segment]) -> np.ndarray:
    """int64 [trees]: trained tokens of all branches of each."""
    return np.fromiter(
        (sum(sum(branch.trained_flags) for branch in tree.branches) for tree in trees), np.int64, len(trees)
    )


@torch.no_grad()
def _of_branches(
    model: nn.Module,
    trees: Sequence[Segment],
    read: Callable[[nn.Module, PackedBatch], list[Tensor]],
    token_budget: int,
    on_tree: Callable[[int], None],
    sizes: np.ndarray,
) -> BranchNumbers:
    """What `read` gives for each segment of a pack, of the branches of each tree; sizes: numbers of each tree.

    The packs are shared out among the processes of the run, which all end up with all numbers.
    """
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])
    if not len(trees):
        return BranchNumbers(np.zeros(0, np.float32), starts)
    passes = passes_of(model)
    packs = pack_arrays(lengths_of(trees), token_budget)
    flat: Tensor | None = None
    with evaluating(model):
        for number, (members, counts) in enumerate(own_parts(packs)):
            batch = PackedBatch.from_trees([trees[index] for index in members])
            found = passes(batch, read)
            if flat is None:
                flat = found[0].new_zeros(int(starts[-1]))
            branches: list[list[Tensor]] = [[] for _ in members]
            for numbers, tree, parent in zip(
                found, batch.segment_tree.tolist(), batch.segment_parent.tolist(), strict=True
            ):
                if parent >= 0:
                    branches[tree].append(numbers)
            if counts:
                for index, numbers in zip(members, branches, strict=True):
                    if numbers:
                        flat[starts[index] : starts[index + 1]] = torch.cat(numbers)
            on_tree(sum(map(len, packs[number * num_processes() : (number + 1) * num_processes()])))
    flat = sum_over_processes(flat).cpu()
    return BranchNumbers((flat if flat.dtype == torch.float64 else flat.float()).numpy(), starts)


def by_score(trees: Sequence[Segment], rewards: Sequence[Sequence[float]]) -> Iterator[tuple[float, float]]:
    """(score in the record, number of the model) of every answer."""
    for tree, numbers in zip(trees, rewards, strict=True):
        for branch, number in zip(tree.branches, numbers, strict=True):
            yield branch.values["score"], number

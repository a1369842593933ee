"""Sums over all trees of a data set, which a store of trees knows without reading them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from keju.trees.segment import Segment


@dataclass
class TreeTotals:
    """num_unshared_tokens: of rows of prompt + answer. num_pairs: ordered pairs of answers with different scores.
    deepest: tokens on the longest path from a root."""

    num_trees: int = 0
    num_tokens: int = 0
    num_unshared_tokens: int = 0
    num_predictions: int = 0
    num_pairs: int = 0
    deepest: int = 0

    @classmethod
    def of(cls, trees: Iterable[Segment]) -> TreeTotals:
        totals = cls()
        for tree in trees:
            totals.num_trees += 1
            totals.num_tokens += tree.num_tokens
            totals.num_unshared_tokens += tree.num_unshared_tokens
            totals.num_predictions += tree.num_predictions
            totals.num_pairs += tree_pairs(tree)
            totals.deepest = max(totals.deepest, tree_depth(tree))
        return totals

    def add(self, more: TreeTotals) -> None:
        for name, value in vars(more).items():
            own = getattr(self, name)
            setattr(self, name, max(own, value) if name == "deepest" else own + value)


def tree_depth(tree: Segment) -> int:
    """Tokens on the longest path from the root."""
    return len(tree.tokens) + max((tree_depth(branch) for branch in tree.branches), default=0)


def tree_pairs(tree: Segment) -> int:
    scores = [branch.values["score"] for branch in tree.branches if "score" in branch.values]
    return sum(a > b for a in scores for b in scores)

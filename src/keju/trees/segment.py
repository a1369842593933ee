"""Token trees: a shared prefix with branches.

A prompt with its K answers, a document without branches, few-shot examples with the questions under them and the
choices under each question: every stage trains on, or scores, one of these. The tokens of a shared prefix are computed
once, and each branch sees exactly the tokens on its path from the root, as if it stood alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field


@dataclass
class Segment:
    """A run of tokens and the branches that continue it. A tree is its root segment.

    tokens: ids of this segment alone.
    trained: which of `tokens` are predicted (from the token before them on the path); one flag for all, or one a token.
    branches: continuations; none of them sees another.
    values: numbers of the segment as a whole (the score of an answer, a cached reference log-probability).
    token_values: numbers of each token, as long as `tokens`; batches keep them at predicted tokens only.
    bidirectional: the segment's tokens see each other in both directions (the context of GLM and other prefix-LMs).
    number: by which whoever made the tree finds the segment again in a batch (the row of a response); -1: none.
    """

    tokens: Sequence[int]
    trained: Sequence[bool] | bool = False
    branches: list[Segment] = field(default_factory=list)
    values: dict[str, float] = field(default_factory=dict)
    token_values: dict[str, Sequence[float]] = field(default_factory=dict)
    bidirectional: bool = False
    number: int = -1

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole subtree."""
        return len(self.tokens) + sum(branch.num_tokens for branch in self.branches)

    def preorder(self) -> Iterator[Segment]:
        yield self
        for branch in self.branches:
            yield from branch.preorder()

    @property
    def trained_flags(self) -> list[bool]:
        """`trained`, one flag a token."""
        trained = self.trained
        return [trained] * len(self.tokens) if isinstance(trained, bool) else [bool(flag) for flag in trained]

    @property
    def num_predictions(self) -> int:
        """Predicted tokens of the whole subtree; the very first token of a tree has nothing before it."""
        total = 0
        for segment in self.preorder():
            flags = segment.trained
            total += (len(segment.tokens) if flags else 0) if isinstance(flags, bool) else sum(segment.trained_flags)
        if self.tokens and (self.trained if isinstance(self.trained, bool) else self.trained[0]):
            total -= 1
        return total

    @property
    def num_unshared_tokens(self) -> int:
        """Tokens that one row per leaf would take: what a padded batch computes, padding not counted."""
        if not self.branches:
            return len(self.tokens)
        return len(self.tokens) * self.num_leaves + sum(branch.num_unshared_tokens for branch in self.branches)

    @property
    def num_leaves(self) -> int:
        return sum(branch.num_leaves for branch in self.branches) or 1

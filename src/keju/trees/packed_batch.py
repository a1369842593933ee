"""Trees laid out in one row of tensors: what a model computes in one forward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from keju.trees.segment import Segment


@dataclass
class PackedBatch:
    """One row of T tokens holding several trees in preorder; N predicted tokens; S segments.

    input_ids, position_ids      int64 [1, T]; positions continue from the parent segment, so siblings share theirs
    visible_from, visible_until  int64 [T]; the column mask (see keju.trees.column_mask)
    source      int64 [N]        index of the token whose output predicts
    target      int64 [N]        the id that is predicted
    token_index int64 [N]        where that id itself stands in the row
    target_segment int64 [N]     the segment it belongs to
    segment_tree, segment_parent, segment_start, segment_end  int64 [S]; tokens of segment s are the half-open range
                                 start..end; parent -1 for roots. An empty segment has start = end.
    segment_number int64 [S]     of each segment, -1 where it has none
    values      dict of float32 [S]; NaN where a segment has no such value
    token_values dict of float32 [N]; NaN likewise
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    visible_from: torch.Tensor
    visible_until: torch.Tensor
    source: torch.Tensor
    target: torch.Tensor
    token_index: torch.Tensor
    target_segment: torch.Tensor
    segment_tree: torch.Tensor
    segment_parent: torch.Tensor
    segment_start: torch.Tensor
    segment_end: torch.Tensor
    segment_number: torch.Tensor
    values: dict[str, torch.Tensor] = field(default_factory=dict)
    token_values: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def num_trees(self) -> int:
        return int(self.segment_tree[-1]) + 1 if len(self.segment_tree) else 0

    @property
    def num_segments(self) -> int:
        return len(self.segment_tree)

    @property
    def num_tokens(self) -> int:
        return self.input_ids.shape[1]

    @property
    def token_tree(self) -> torch.Tensor:
        """int64 [T]: the number of the tree that each token belongs to."""
        return self.segment_tree.repeat_interleave(self.segment_end - self.segment_start)

    def to(self, device: torch.device | str, **kwargs) -> PackedBatch:
        """A copy whose tensors are on `device`."""
        return self._with_tensors(lambda tensor: tensor.to(device, **kwargs))

    def pin_memory(self) -> PackedBatch:
        """A copy whose tensors lie in pinned memory."""
        return self._with_tensors(torch.Tensor.pin_memory)

    def _with_tensors(self, change: Callable[[torch.Tensor], torch.Tensor]) -> PackedBatch:
        changed: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            is_dict = isinstance(value, dict)
            changed[item.name] = {name: change(one) for name, one in value.items()} if is_dict else change(value)
        return PackedBatch(**changed)

    @classmethod
    def from_trees(cls, trees: Sequence[Segment]) -> PackedBatch:
        """Lays out `trees` one after the other. Raises ValueError for flags or values of another length than tokens."""
        layout = _Layout()
        for number, tree in enumerate(trees):
            layout.add(tree, tree=number, parent=-1, last_token=-1, position=0)
        return layout.batch(cls)


class _Layout:
    def __init__(self) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.visible_from: list[int] = []
        self.visible_until: list[int] = []
        self.predictions: list[tuple[int, int, int, int]] = []  # source, target, token index, segment
        self.segments: list[tuple[int, int, int, int, int]] = []  # tree, parent, start, end, number
        self.values: list[dict[str, float]] = []
        self.token_values: list[dict[str, float]] = []

    def add(self, segment: Segment, *, tree: int, parent: int, last_token: int, position: int) -> None:
        """`last_token`: index of the token before this segment on its path (-1 at the root)."""
        tokens = list(segment.tokens)
        start, end, number = len(self.ids), len(self.ids) + len(tokens), len(self.segments)
        trained = segment.trained
        flags = [trained] * len(tokens) if isinstance(trained, bool) else list(trained)
        if len(flags) != len(tokens):
            raise ValueError(f"a segment of {len(tokens)} tokens has {len(flags)} training flags")
        for name, numbers in segment.token_values.items():
            if len(numbers) != len(tokens):
                raise ValueError(f"token value {name!r}: {len(numbers)} numbers for {len(tokens)} tokens")
        self.segments.append((tree, parent, start, end, segment.number))
        self.values.append(segment.values)
        self.ids += tokens
        self.positions += range(position, position + len(tokens))
        self.visible_from += [start] * len(tokens) if segment.bidirectional else range(start, end)
        self.visible_until += [-1] * len(tokens)  # known when the subtree is complete
        for offset, (token, flag) in enumerate(zip(tokens, flags, strict=True)):
            source = start + offset - 1 if offset else last_token
            # The first token of a tree is what everything else is conditioned on: nothing predicts it.
            if flag and source >= 0:
                self.predictions.append((source, token, start + offset, number))
                self.token_values.append({name: numbers[offset] for name, numbers in segment.token_values.items()})
        for branch in segment.branches:
            self.add(
                branch,
                tree=tree,
                parent=number,
                last_token=end - 1 if tokens else last_token,
                position=position + len(tokens),
            )
        self.visible_until[start:end] = [len(self.ids)] * len(tokens)

    def batch(self, cls: type[PackedBatch]) -> PackedBatch:
        def integers(rows, width: int) -> tuple[torch.Tensor, ...]:
            return torch.tensor(rows, dtype=torch.int64).reshape(-1, width).unbind(1)

        source, target, token_index, target_segment = integers(self.predictions, 4)
        segment_tree, segment_parent, segment_start, segment_end, segment_number = integers(self.segments, 5)
        return cls(
            input_ids=torch.tensor([self.ids], dtype=torch.int64),
            position_ids=torch.tensor([self.positions], dtype=torch.int64),
            visible_from=torch.tensor(self.visible_from, dtype=torch.int64),
            visible_until=torch.tensor(self.visible_until, dtype=torch.int64),
            source=source,
            target=target,
            token_index=token_index,
            target_segment=target_segment,
            segment_tree=segment_tree,
            segment_parent=segment_parent,
            segment_start=segment_start,
            segment_end=segment_end,
            segment_number=segment_number,
            values=_columns(self.values),
            token_values=_columns(self.token_values),
        )


def _columns(rows: list[dict[str, float]]) -> dict[str, torch.Tensor]:
    names = sorted({name for row in rows for name in row})
    return {name: torch.tensor([row.get(name, math.nan) for row in rows], dtype=torch.float32) for name in names}

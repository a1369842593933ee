"""Attention under a column mask: key k is visible to the queries `visible_from[k] <= q < visible_until[k]`.

The mask (FlashMask, arXiv 2410.01359) covers causal packing, trees with a shared prefix, and prefix-LM contexts. This
reference runs on any device: queries go in chunks, each against the keys that any of them may see, so that neither the
full [T, T] mask nor the work for masked keys is ever there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F

CHUNK = 128
# Keys are gathered where that leaves out at least this share of the range that holds them.
GATHER_SHARE = 0.2


@dataclass(frozen=True, eq=False)
class ColumnMask:
    """The mask of one packed row; one object serves all layers, so that its plan is made once a forward pass.

    visible_from, visible_until: int64 [T], on any device.
    """

    visible_from: torch.Tensor
    visible_until: torch.Tensor

    @cached_property
    def chunks(self) -> list[tuple[slice, slice | torch.Tensor, torch.Tensor]]:
        """(queries, keys, bool mask [queries, keys]) for each chunk of queries. keys is the smallest range that holds
        every key visible to one of them; or the indices of those keys, int64, if it holds many others."""
        begin, end = self.visible_from, self.visible_until
        length = begin.shape[0]
        query = torch.arange(length, device=begin.device)
        starts = range(0, length, CHUNK)
        # Which keys does any query of the chunk see? [chunks, T]; First, last and number: one device transfer.
        lower = torch.tensor(list(starts), device=begin.device)[:, None]
        upper = (lower + CHUNK).clamp(max=length)
        touched = (torch.maximum(begin, lower) < torch.minimum(end, upper)) if length else begin[None]
        first, last = touched.int().argmax(1), length - touched.flip(1).int().argmax(1)
        plan = []
        for number, (low, high, count) in enumerate(torch.stack([first, last, touched.sum(1)], dim=1).tolist()):
            queries = slice(starts[number], min(starts[number] + CHUNK, length))
            keys: slice | torch.Tensor = slice(low, high)
            if count < (1 - GATHER_SHARE) * (high - low):
                keys = touched[number].nonzero().squeeze(1)
            rows = query[queries, None]
            plan.append((queries, keys, (begin[None, keys] <= rows) & (rows < end[None, keys])))
        return plan


def column_mask_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: ColumnMask,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
    alibi: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Scaled dot-product attention of one packed row.

    query [1, heads, T, D], key [1, kv_heads, T, D], value [1, kv_heads, T, Dv] (kv_heads divides heads: GQA and MQA);
    returns [1, heads, T, Dv]. `scale` defaults to 1 / sqrt(D). Differentiable. Every query must see some key (in a tree
    each token sees itself).

    alibi: (slopes float [heads], positions int64 [T]) adds slope * (position of key - position of query) to the scores:
    by position and not by index, so that siblings in a tree are as far from their prompt as each is alone.
    """
    if groups := query.shape[1] // key.shape[1]:
        key = key.repeat_interleave(groups, dim=1) if groups > 1 else key
        value = value.repeat_interleave(groups, dim=1) if groups > 1 else value
    outputs = [
        F.scaled_dot_product_attention(
            query[:, :, queries],
            key[:, :, keys],
            value[:, :, keys],
            attn_mask=visible if alibi is None else _biased(visible, alibi, queries, keys, query.dtype),
            dropout_p=dropout,
            scale=scale,
        )
        for queries, keys, visible in mask.chunks
    ]
    return torch.cat(outputs, dim=2) if len(outputs) > 1 else outputs[0]


def _biased(
    visible: torch.Tensor,
    alibi: tuple[torch.Tensor, torch.Tensor],
    queries: slice,
    keys: slice | torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """bool [queries, keys] -> [heads, queries, keys] in `dtype`: the bias where visible, elsewhere -inf."""
    slopes, positions = alibi
    # Differences are taken as integers and scaled in the slopes' dtype: half precision rounds the result only.
    distance = (positions[None, keys] - positions[queries, None]).to(slopes.dtype)
    return (slopes[:, None, None] * distance).masked_fill(~visible, -torch.inf).to(dtype)

"""The attention pattern of packed trees as two integers a key (the column-wise mask of FlashMask, arXiv 2410.01359).

Key k is visible to the queries q with `visible_from[k] <= q < visible_until[k]`. Causal: `visible_from[k] = k`.
Branches that do not see each other: `visible_until[k]` is the end of the subtree that k's segment opens, in preorder.
Bidirectional context: `visible_from[k]` is the start of its segment.
"""

from __future__ import annotations

import torch


def dense_mask(visible_from: torch.Tensor, visible_until: torch.Tensor) -> torch.Tensor:
    """[T], [T] -> bool [T queries, T keys], True where the key is visible to the query."""
    query = torch.arange(visible_from.shape[0], device=visible_from.device)[:, None]
    return (visible_from[None, :] <= query) & (query < visible_until[None, :])

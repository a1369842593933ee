"""Rotary positions (arXiv 2104.09864): the angles of our families."""

from __future__ import annotations

import torch

BASE = 10000.0


def rotary_angles(
    position_ids: torch.Tensor, size: int, base: float = BASE, alpha: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, float32 [B, T, size / 2], for position_ids int64 [B, T] and `size` elements of a head.

    alpha float32 [B] (either B may be 1) stretches the base of each row as NTK-aware scaling does.
    """
    exponent = torch.arange(0, size, 2, device=position_ids.device).float() / size
    if alpha is not None:
        base = (base * alpha ** (size / (size - 2)))[:, None, None]
    angles = position_ids[:, :, None].float() / base**exponent
    return angles.cos(), angles.sin()

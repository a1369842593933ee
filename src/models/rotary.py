"""Rotary positions (arXiv 2104.09864) in Llama's layout: element i of a head forms a pair with element i + D / 2."""

from __future__ import annotations

import torch

BASE = 10000.0


def rotary_angles(
    position_ids: torch.Tensor, size: int, base: float = BASE, alpha: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, float32 [B, 1, T, size], for position_ids int64 [B, T]; the second half repeats the first.

    alpha float32 [B] (either B may be 1) stretches the base of each row as NTK-aware scaling does.
    """
    exponent = torch.arange(0, size, 2, device=position_ids.device).float() / size
    if alpha is not None:
        base = (base * alpha ** (size / (size - 2)))[:, None, None, None]
    angles = position_ids[:, None, :, None].float() / base**exponent
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(states: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """states [B, heads, T, D] turned by `rotary_angles`, in float32 and back."""
    cos, sin = angles
    first, second = states.float().chunk(2, dim=-1)
    return (states * cos + torch.cat([-second, first], dim=-1) * sin).to(states.dtype)

"""Rotary positions of queries and keys: the half-split layout of Llama, and ChatGLM2's neighbours in half of a head."""

from __future__ import annotations

from typing import NamedTuple

import torch
from harness.case import FORWARD, TRAINING, Absent, Case, Provider, Setting, Work, draw_heads
from harness.peers import compiled, liger

from keju.kernels.rotary import rotary


class Size(NamedTuple):
    length: int
    heads: int
    kv_heads: int
    head_dim: int


SIZES = {"full": Size(8192, 32, 8, 128), "small": Size(1024, 8, 2, 64), "tiny": Size(16, 4, 2, 16)}


def cases(setting: Setting) -> list[Case]:
    return [_case(setting, "half-split"), _case(setting, "neighbours, half of the head")]


def _case(setting: Setting, layout: str) -> Case:
    length, heads, kv_heads, head_dim = SIZES[setting.size]
    is_split = layout == "half-split"
    angles = head_dim // 2 if is_split else head_dim // 4
    once = (2 * (heads + kv_heads) * head_dim + 2 * angles) * length * setting.dtype.itemsize

    def build():
        cos, sin = _tables(setting, length, angles)
        query = draw_heads(setting, heads, length, head_dim)
        key = draw_heads(setting, kv_heads, length, head_dim, seed=1)
        plain = _half_split if is_split else _neighbours
        pack = _doubled if is_split else None
        return {"query": query, "key": key, "cos": cos, "sin": sin}, {
            "keju": Provider(lambda query, key, cos, sin: rotary(query, key, cos, sin, group=None if is_split else 1)),
            "torch": Provider(plain, pack),
            "torch.compile": _packed(compiled(setting, plain), pack),
            "liger": liger(setting, _liger) if is_split else Absent("it has no such layout"),
        }

    name = f"{length} tokens, {heads}/{kv_heads} heads of {head_dim}, {layout}"
    return Case(name, setting.dtype, {FORWARD: Work(once), TRAINING: Work(2 * once)}, build)


def _tables(setting: Setting, length: int, angles: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin [1, length, angles]"""
    frequencies = 10000.0 ** (-torch.arange(angles, device=setting.device) / angles)
    angle = torch.arange(length, device=setting.device)[None, :, None] * frequencies
    return angle.cos().to(setting.dtype), angle.sin().to(setting.dtype)


def _packed(provider: Provider | Absent, pack) -> Provider | Absent:
    return provider if isinstance(provider, Absent) else Provider(provider.run, pack)


def _doubled(query, key, cos, sin):
    """As transformers has its tables: [1, length, head_dim], each angle twice."""
    return {"query": query, "key": key, "cos": torch.cat([cos, cos], -1), "sin": torch.cat([sin, sin], -1)}


def _half_split(query, key, cos, sin):
    cos, sin = cos[:, None], sin[:, None]
    return tuple(x * cos + _rotate_half(x) * sin for x in (query, key))


def _rotate_half(x):
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def _neighbours(query, key, cos, sin):
    cos, sin = cos[:, None], sin[:, None]
    outputs = []
    for x in (query, key):
        turned, rest = x[..., : 2 * cos.shape[-1]], x[..., 2 * cos.shape[-1] :]
        first, second = turned[..., 0::2], turned[..., 1::2]
        pairs = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1)
        outputs.append(torch.cat([pairs.flatten(-2), rest], dim=-1))
    return tuple(outputs)


def _liger() -> Provider:
    from liger_kernel.transformers.functional import liger_rope

    return Provider(lambda query, key, cos, sin: liger_rope(query, key, cos, sin), _doubled)

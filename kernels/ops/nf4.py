"""NF4, the 4-bit normal float of QLoRA (arXiv 2305.14314), in the layout of bitsandbytes.

Blocks of consecutive elements share a scale, their greatest magnitude; an element is one of 16 levels of that. Scales
may themselves be stored in 8 bits ("double quantisation"): levels of a scale of their own, around an offset.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from keju.kernels.dispatch import check_floating, jit, launch, tl, triton, use_triton

BLOCK = 1024

# Quantiles of the normal distribution, 0 exactly (appendix E of the paper).
LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


@dataclass(frozen=True, eq=False)
class NF4:
    """A quantised matrix.

    packed: uint8, two elements a byte, the first in the high bits; absmax: the scales, float32 [blocks], or with double
    quantisation uint8 [blocks]: then scale = nested_levels[absmax] * nested_absmax[block // nested_size] + offset, with
    nested_levels float32 [256], nested_absmax float32 and offset float32 [].
    """

    packed: torch.Tensor
    absmax: torch.Tensor
    levels: torch.Tensor
    shape: tuple[int, ...]
    dtype: torch.dtype
    block_size: int = 64
    nested_absmax: torch.Tensor | None = None
    nested_levels: torch.Tensor | None = None
    nested_size: int = 256
    offset: torch.Tensor | None = None

    @classmethod
    def from_bitsandbytes(cls, packed: torch.Tensor, state: Any) -> NF4:
        """Of a bitsandbytes weight and its `quant_state`. Raises ValueError for another type than NF4."""
        if state.quant_type != "nf4":
            raise ValueError(f"weights are quantised to {state.quant_type}: only nf4 is supported")
        nested = {}
        if state.nested:
            nested = {
                "nested_absmax": state.state2.absmax,
                "nested_levels": state.state2.code,
                "nested_size": state.state2.blocksize,
                "offset": state.offset,
            }
        return cls(packed, state.absmax, state.code, tuple(state.shape), state.dtype, state.blocksize, **nested)

    @property
    def device(self) -> torch.device:
        return self.packed.device

    def numel(self) -> int:
        return torch.Size(self.shape).numel()

    def scales(self) -> torch.Tensor:
        """float32 [blocks]"""
        if self.nested_absmax is None:
            return self.absmax
        block = torch.arange(len(self.absmax), device=self.device) // self.nested_size
        return self.nested_levels[self.absmax.long()] * self.nested_absmax[block] + self.offset

    def pointers(self) -> tuple[torch.Tensor | int | None, ...]:
        """What `element` wants, in its order."""
        nested = (self.nested_absmax, self.nested_levels, self.offset)
        tensors = (self.packed, self.absmax, self.levels, *nested)
        contiguous = (None if tensor is None else tensor.contiguous() for tensor in tensors)
        return *contiguous, self.block_size, self.nested_size


@jit
def element(
    index, inside, packed, absmax, levels, nested_absmax, nested_levels, offset, block_size, nested_size,
    NESTED: tl.constexpr,
):  # fmt: skip
    """The elements at `index` (int64, any shape) of a quantised matrix in row-major order, float32; 0 outside."""
    byte = tl.load(packed + index // 2, mask=inside, other=0).to(tl.int32)
    level = tl.where(index % 2 == 0, byte >> 4, byte & 15)
    block = index // block_size
    if NESTED:
        code = tl.load(absmax + block, mask=inside, other=0).to(tl.int32)
        scale = tl.load(nested_levels + code) * tl.load(nested_absmax + block // nested_size, mask=inside, other=0.0)
        scale += tl.load(offset)
    else:
        scale = tl.load(absmax + block, mask=inside, other=0.0)
    return tl.where(inside, tl.load(levels + level) * scale, 0.0)


@jit
def _dequantize(
    out, size, packed, absmax, levels, nested_absmax, nested_levels, offset, block_size, nested_size,
    NESTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < size
    value = element(
        index, inside, packed, absmax, levels, nested_absmax, nested_levels, offset, block_size, nested_size, NESTED
    )
    tl.store(out + index, value, mask=inside)


def dequantize_nf4(weight: NF4, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The matrix in `dtype` (default: that before it was quantised), [weight.shape]. No gradient flows.

    Raises ValueError where the parts of the weight do not fit together.
    """
    _check(weight)
    dtype = dtype or weight.dtype
    if not use_triton(weight.packed):
        return reference(weight, dtype)
    out = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    launch(
        _dequantize,
        (triton.cdiv(out.numel(), BLOCK),),
        *(out, out.numel(), *weight.pointers()),
        NESTED=weight.nested_absmax is not None,
        BLOCK=BLOCK,
        num_warps=4,
    )
    return out


def _check(weight: NF4) -> None:
    blocks = -(-weight.numel() // weight.block_size)
    if weight.packed.dtype != torch.uint8 or weight.packed.numel() != -(-weight.numel() // 2):
        found = f"{weight.packed.dtype} {list(weight.packed.shape)}"
        raise ValueError(f"packed must hold {weight.numel()} elements, two a uint8, not {found}")
    if weight.absmax.numel() != blocks:
        raise ValueError(f"absmax must hold {blocks} scales, not {weight.absmax.numel()}")
    check_floating(levels=weight.levels, nested_absmax=weight.nested_absmax, offset=weight.offset)
    if (weight.absmax.dtype == torch.uint8) != (weight.nested_absmax is not None):
        raise ValueError(f"absmax is {weight.absmax.dtype}: uint8 with nested_absmax, floating point without")


def reference(weight: NF4, dtype: torch.dtype) -> torch.Tensor:
    """The same in plain torch."""
    packed = weight.packed.reshape(-1)
    codes = torch.stack([packed >> 4, packed & 15], dim=1).reshape(-1)[: weight.numel()]
    scales = weight.scales().repeat_interleave(weight.block_size)[: weight.numel()]
    return (weight.levels[codes.long()] * scales).to(dtype).view(weight.shape)


def quantize_nf4(weight: torch.Tensor, block_size: int = 64) -> NF4:
    """To the nearest of the 16 levels, scales in float32. Raises ValueError for integers."""
    check_floating(weight=weight)
    levels = torch.tensor(LEVELS, device=weight.device)
    flat = weight.detach().float().reshape(-1)
    flat = torch.nn.functional.pad(flat, (0, -len(flat) % block_size)).view(-1, block_size)
    absmax = flat.abs().amax(1)
    relative = (flat / absmax.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).reshape(-1)
    codes = torch.bucketize(relative, (levels[1:] + levels[:-1]) / 2).to(torch.uint8)[: weight.numel()]
    codes = torch.nn.functional.pad(codes, (0, len(codes) % 2), value=7)  # 7 is 0
    packed = (codes[0::2] << 4) | codes[1::2]
    return NF4(packed, absmax, levels, tuple(weight.shape), weight.dtype, block_size)

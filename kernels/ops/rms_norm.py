"""RMSNorm (arXiv 1910.07467), with the addition to the residual stream that comes before it in one pass."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

from keju.kernels.dispatch import check_floating, check_shape, use_triton
from keju.kernels.row_norm import MAX_SIZE, RowNorm

Casting = Literal["llama", "gemma"]


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    eps: float = 1e-6,
    *,
    residual: torch.Tensor | None = None,
    offset: float = 0.0,
    casting: Casting = "gemma",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """x / sqrt(mean(x^2) + eps) * (weight + offset) over the last dimension; x [..., H], weight [H].

    With `residual` [..., H], x + residual is normalised, and (its norm, x + residual) is returned.

    Statistics are float32. casting "gemma" (and torch's RMSNorm): the weight is applied in float32, the result has the
    dtype of x; "llama": rounded to the dtype of x before, so that a float32 weight makes the result float32. Gemma has
    offset=1. Raises ValueError for other shapes, dtypes and devices than these.
    """
    check_floating(x=x, weight=weight, residual=residual)
    check_shape("weight", weight, x.shape[-1:])
    check_shape("residual", residual, x.shape)
    if casting not in ("llama", "gemma"):
        raise ValueError(f'casting must be "llama" or "gemma", not {casting!r}')
    if not use_triton(x) or x.shape[-1] > MAX_SIZE:
        return reference(x, weight, eps, residual=residual, offset=offset, casting=casting)
    hidden_dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    widened = casting == "llama" and weight is not None
    dtype = torch.promote_types(hidden_dtype, weight.dtype) if widened else hidden_dtype
    options = {"eps": eps, "offset": offset, "centred": False, "round_first": casting == "llama", "dtype": dtype}
    y, summed = RowNorm.apply(x, residual, weight, None, options)
    return y if residual is None else (y, summed)


def reference(x, weight=None, eps=1e-6, *, residual=None, offset=0.0, casting: Casting = "gemma"):
    """The same in plain torch."""
    if residual is not None:
        x = x + residual
    if casting == "gemma" and not offset and (weight is None or weight.dtype == x.dtype):
        y = F.rms_norm(x, x.shape[-1:], weight, eps)
        return y if residual is None else (y, x)
    wide = x.float() if x.dtype != torch.float64 else x
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    if casting == "llama":
        y = normed.to(x.dtype)
        y = y if weight is None else y * (weight + offset)
    else:
        y = (normed if weight is None else normed * (weight.to(wide.dtype) + offset)).to(x.dtype)
    return y if residual is None else (y, x)

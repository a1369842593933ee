"""LayerNorm (arXiv 1607.06450), with the addition to the residual stream that comes before it in one pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from keju.kernels.dispatch import check_floating, check_shape, use_triton
from keju.kernels.row_norm import MAX_SIZE, RowNorm


def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last dimension; x [..., H], weight and bias [H].

    With `residual` [..., H], x + residual is normalised, and (its norm, x + residual) is returned. Statistics, weight
    and bias are applied in float32, the result has the dtype of what is normalised. Raises ValueError for other shapes,
    dtypes and devices than these, and for a bias without a weight.
    """
    check_floating(x=x, weight=weight, bias=bias, residual=residual)
    check_shape("weight", weight, x.shape[-1:])
    check_shape("bias", bias, x.shape[-1:])
    check_shape("residual", residual, x.shape)
    if bias is not None and weight is None:
        raise ValueError("bias is given without weight")
    if not use_triton(x) or x.shape[-1] > MAX_SIZE:
        return reference(x, weight, bias, eps, residual=residual)
    dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    options = {"eps": eps, "offset": 0.0, "centred": True, "round_first": False, "dtype": dtype}
    y, summed = RowNorm.apply(x, residual, weight, bias, options)
    return y if residual is None else (y, summed)


def reference(x, weight=None, bias=None, eps=1e-5, *, residual=None):
    """The same in plain torch."""
    if residual is not None:
        x = x + residual
    if weight is None or weight.dtype == x.dtype:
        y = F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    else:
        bias = None if bias is None else bias.float()
        y = F.layer_norm(x.float(), x.shape[-1:], weight.float(), bias, eps).to(x.dtype)
    return y if residual is None else (y, x)

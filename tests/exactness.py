"""How far two ways of computing the same thing may lie apart: no further than rounding takes either of them.

A tolerance in absolute numbers holds on the processor on which it was found: others sum in another order. And
a gradient that is a sum of large terms which cancel (that of a bias of the keys, in softmax attention) is nothing but
rounding, of any size relative to itself.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

EPSILON = {dtype: torch.finfo(dtype).eps for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)}


def assert_as_exact(
    found: Iterable[Tensor], plain: Iterable[Tensor], exact: Iterable[Tensor], *, factor: float = 8.0
) -> None:
    """`found` is about as near to `exact` as `plain` is.

    Args:
        found, plain: the same tensors computed in two ways in one precision.
        exact: the same computed in float64.
        factor: by how much the largest error in a tensor may exceed that of `plain`. Errors of sums in two orders are
            draws of one distribution; the largest of some dozen differ by 2 or 3.
    """
    for number, (ours, theirs, wide) in enumerate(zip(found, plain, exact, strict=True)):
        assert ours.shape == theirs.shape == wide.shape, f"tensor {number}"
        if not ours.numel():
            continue
        wide = wide.double()
        unit = EPSILON[ours.dtype] * wide.abs().max().item()
        allowed = factor * (unit + (theirs.double() - wide).abs().max().item())
        error = (ours.double() - wide).abs().max().item()
        assert error <= allowed, f"tensor {number}, {list(ours.shape)}: off by {error:.3g}, {allowed:.3g} are allowed"

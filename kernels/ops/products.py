"""Matrix products inside kernels."""

from __future__ import annotations

import torch

from keju.kernels.dispatch import is_interpreted, jit, tl


@jit
def dot(a, b, PRECISION: tl.constexpr, DTYPE: tl.constexpr):
    """a @ b, summed in DTYPE."""
    if PRECISION == "interpreted":
        # Triton's interpreter takes the bits of bfloat16 for integers in a product; its products are exact in float32.
        return tl.dot(a.to(DTYPE), b.to(DTYPE), out_dtype=DTYPE)
    else:
        return tl.dot(a, b, input_precision=PRECISION, out_dtype=DTYPE)


def precision(tensor: torch.Tensor) -> str:
    """How exact products of float32 are: as exact as torch's, which torch.backends.cuda.matmul.allow_tf32 rules."""
    if is_interpreted():
        return "interpreted"
    return "tf32" if tensor.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"

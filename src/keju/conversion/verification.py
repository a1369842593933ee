"""The proof of a conversion: the model before and the model after give the same logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from keju.errors import UserError

LENGTHS = (24, 13, 5)
# Of the largest logit. float32 differs by 1e-6 where sums are taken in another order.
TOLERANCE = 1e-4


@torch.inference_mode()
def sample_logits(
    model: PreTrainedModel, num_tokens: int, forward: Callable[..., torch.Tensor] | None = None
) -> torch.Tensor:
    """float32 [2 * sum(LENGTHS), num_tokens]: logits at each token of random rows, padded right and then left.

    The ids are the same at each call, below `num_tokens`, the number of tokens that both models know. forward: gives
    [B, T, outputs] for a model that has something else than logits.
    """
    forward = forward or (lambda **inputs: model(**inputs, use_cache=False).logits)
    model.eval()
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(num_tokens, (length,), generator=generator) for length in LENGTHS]
    logits = []
    for side in ("right", "left"):
        ids = pad_sequence(rows, batch_first=True, padding_side=side)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side=side)
        output = forward(input_ids=ids, attention_mask=mask)
        logits.append(output[mask.bool()][:, :num_tokens].float())
    return torch.cat(logits)


def largest_difference(before: torch.Tensor, after: torch.Tensor) -> float:
    """The largest difference of two results of sample_logits. Raises UserError if it is more than rounding."""
    if not before.isfinite().all():
        raise UserError("the logits of the model that is converted are not finite: its weights are damaged")
    difference, scale = (before - after).abs().max().item(), before.abs().max().item()
    if not difference <= TOLERANCE * scale:
        raise UserError(
            f"the converted model gives other logits (difference {difference:.2g} at a scale of {scale:.2g}): "
            "nothing is written"
        )
    return difference

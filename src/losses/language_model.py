"""Next-token loss."""

from __future__ import annotations

import torch


def language_model_loss(logprobs: torch.Tensor) -> torch.Tensor:
    """Sum of the negative log-probabilities of predicted tokens, [N] -> []; the caller divides by their number."""
    return -logprobs.sum()

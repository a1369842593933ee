"""Next-token loss."""

from __future__ import annotations

import torch


def language_model_loss(logprobs: torch.Tensor) -> torch.Tensor:
    """Sum of the negative log-probabilities of the predicted tokens, [N] -> []; divide by the global number of tokens."""
    return -logprobs.sum()

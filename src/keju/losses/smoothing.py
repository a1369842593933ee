"""The logistic loss of a margin, for labels that may be wrong."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def smoothed_logistic(margin: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """-(1 - e) log sigmoid(m) - e log sigmoid(-m): e is the chance that the two answers are the wrong way round."""
    if not label_smoothing:
        return -F.logsigmoid(margin)
    return -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)

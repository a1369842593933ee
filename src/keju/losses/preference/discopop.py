"""DiscoPOP (Lu et al. 2024, arXiv 2406.08414, eq. 5): a loss that a language model found, logistic and exponential."""

import torch
import torch.nn.functional as F
from torch import Tensor

from keju.losses.preference_pairs import LossSettings, PreferencePairs


def loss(pairs: PreferencePairs, settings: LossSettings) -> Tensor:
    """-(1 - w) log sigmoid(u) + w e^-u, u = beta d, w = sigmoid(u / tau), [P]."""
    u = settings.beta * pairs.difference
    weight = torch.sigmoid(u / settings.discopop_tau)
    # Where the exponential has no weight it may be infinite: 0 * inf is not a number.
    exponential = torch.exp(-u.clamp(min=-80))
    return -F.logsigmoid(u) * (1 - weight) + exponential * weight

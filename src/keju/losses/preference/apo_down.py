"""APO-down (D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 8): both down, losers more, where winners are weak."""

import torch
from torch import Tensor

from keju.losses.preference_pairs import LossSettings, PreferencePairs


def loss(pairs: PreferencePairs, settings: LossSettings) -> Tensor:
    """sigmoid(beta r_w) + 1 - sigmoid(beta d), [P]."""
    return torch.sigmoid(settings.beta * pairs.winner.log_ratio) + 1 - torch.sigmoid(settings.beta * pairs.difference)

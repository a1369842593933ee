"""APO-zero (D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 7): winners up, losers down, for good winners."""

import torch
from torch import Tensor

from keju.losses.preference_pairs import LossSettings, PreferencePairs


def loss(pairs: PreferencePairs, settings: LossSettings) -> Tensor:
    """1 - sigmoid(beta r_w) + sigmoid(beta r_l), [P]."""
    winner, loser = (settings.beta * side.log_ratio for side in pairs)
    return 1 - torch.sigmoid(winner) + torch.sigmoid(loser)

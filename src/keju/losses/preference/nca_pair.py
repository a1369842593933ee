"""NCA for pairs (Chen et al. 2024, arXiv 2402.05369): absolute log-ratios, so that the winner's does not fall."""

import torch.nn.functional as F
from torch import Tensor

from keju.losses.preference_pairs import LossSettings, PreferencePairs


def loss(pairs: PreferencePairs, settings: LossSettings) -> Tensor:
    """-log sigmoid(r_w) - [log sigmoid(-r_w) + log sigmoid(-r_l)] / 2, r = beta log-ratio, [P]."""
    winner, loser = (settings.beta * side.log_ratio for side in pairs)
    return -F.logsigmoid(winner) - (F.logsigmoid(-winner) + F.logsigmoid(-loser)) / 2

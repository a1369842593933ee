"""BCO for pairs (Jung et al. 2024, arXiv 2404.04656): good against bad answers, without the reward shift."""

import torch.nn.functional as F
from torch import Tensor

from keju.losses.preference_pairs import LossSettings, PreferencePairs


def loss(pairs: PreferencePairs, settings: LossSettings) -> Tensor:
    """-log sigmoid(beta r_w) - log sigmoid(-beta r_l), [P]."""
    winner, loser = (settings.beta * side.log_ratio for side in pairs)
    return -F.logsigmoid(winner) - F.logsigmoid(-loser)

"""Length-normalised DPO (Tulu 3, arXiv 2411.15124, eq. 6): log-ratios averaged over tokens."""

import torch.nn.functional as F
from torch import Tensor

from keju.losses.preference_pairs import LossSettings, PreferencePairs


def loss(pairs: PreferencePairs, settings: LossSettings) -> Tensor:
    """-log sigmoid(beta (r_w / |y_w| - r_l / |y_l|)), [P]."""
    winner, loser = (side.log_ratio / side.length for side in pairs)
    return -F.logsigmoid(settings.beta * (winner - loser))

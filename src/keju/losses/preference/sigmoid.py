"""DPO (Rafailov et al. 2023, arXiv 2305.18290, eq. 7); with label smoothing conservative DPO (Mitchell 2023)."""

from torch import Tensor

from keju.losses.preference_pairs import LossSettings, PreferencePairs
from keju.losses.smoothing import smoothed_logistic

SMOOTHED = True


def loss(pairs: PreferencePairs, settings: LossSettings) -> Tensor:
    """-(1 - e) log sigmoid(beta d) - e log sigmoid(-beta d), [P]."""
    return smoothed_logistic(settings.beta * pairs.difference, settings.label_smoothing)

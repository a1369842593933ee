"""AOT for answers that are not paired (Melnyk et al. 2024, arXiv 2406.05882): the log-ratios of good answers dominate.

Sorted over the pairs of the whole batch.
"""

from torch import Tensor

from keju.losses.preference_pairs import LossSettings, PreferencePairs
from keju.losses.smoothing import smoothed_logistic

SMOOTHED = True
NEEDS_ALL_PAIRS = True


def loss(pairs: PreferencePairs, settings: LossSettings) -> Tensor:
    """The logistic loss of beta (sorted log-ratios of winners - sorted log-ratios of losers), [P]."""
    winner, loser = (side.log_ratio.sort().values for side in pairs)
    return smoothed_logistic(settings.beta * (winner - loser), settings.label_smoothing)

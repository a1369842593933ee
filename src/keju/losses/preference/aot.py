"""AOT (Melnyk et al. 2024, arXiv 2406.05882): stochastic dominance of the policy's margins over the reference's.

Sorted over the pairs of the whole batch.
"""

from torch import Tensor

from keju.losses.preference_pairs import LossSettings, PreferencePairs
from keju.losses.smoothing import smoothed_logistic

SMOOTHED = True
NEEDS_ALL_PAIRS = True


def loss(pairs: PreferencePairs, settings: LossSettings) -> Tensor:
    """The logistic loss of beta (sorted policy margins - sorted reference margins), [P]."""
    policy = (pairs.winner.logprob - pairs.loser.logprob).sort().values
    reference = (pairs.winner.ref_logprob - pairs.loser.ref_logprob).sort().values
    return smoothed_logistic(settings.beta * (policy - reference), settings.label_smoothing)

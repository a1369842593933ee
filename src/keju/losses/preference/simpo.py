"""SimPO (Meng et al. 2024, arXiv 2405.14734, eq. 6): mean log-probabilities as rewards, and a margin; no reference.

beta is 2 to 2.5 in the paper, far above DPO's; gamma is the margin itself, not its ratio to beta.
"""

from torch import Tensor

from keju.losses.preference_pairs import LossSettings, PreferencePairs, Side
from keju.losses.smoothing import smoothed_logistic

NEEDS_REFERENCE = False
SMOOTHED = True


def loss(pairs: PreferencePairs, settings: LossSettings) -> Tensor:
    """-log sigmoid(beta (log pi_w / |y_w| - log pi_l / |y_l|) - gamma), [P]."""
    margin = reward(pairs.winner, settings) - reward(pairs.loser, settings) - settings.simpo_gamma
    return smoothed_logistic(margin, settings.label_smoothing)


def reward(side: Side, settings: LossSettings) -> Tensor:
    return settings.beta * side.logprob / side.length

"""CPO (Xu et al. 2024, arXiv 2401.08417, eq. 3): DPO with a uniform reference, plus the language-model loss."""

from torch import Tensor

from keju.losses.preference import sft
from keju.losses.preference_pairs import LossSettings, PreferencePairs, Side
from keju.losses.smoothing import smoothed_logistic

NEEDS_REFERENCE = False
NEEDS_MEAN_LENGTH = True
SMOOTHED = True


def loss(pairs: PreferencePairs, settings: LossSettings) -> Tensor:
    """-log sigmoid(beta (log pi_w - log pi_l)) - alpha log pi_w / mean |y_w|, [P]."""
    margin = reward(pairs.winner, settings) - reward(pairs.loser, settings)
    return smoothed_logistic(margin, settings.label_smoothing) + settings.cpo_alpha * sft.loss(pairs, settings)


def reward(side: Side, settings: LossSettings) -> Tensor:
    return settings.beta * side.logprob

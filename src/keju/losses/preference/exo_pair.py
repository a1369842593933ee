"""EXO for pairs (Ji et al. 2024, arXiv 2402.00856, eq. 16): reverse KL from the policy's choice to the labels'."""

import math

import torch.nn.functional as F
from torch import Tensor

from keju.losses.preference_pairs import LossSettings, PreferencePairs

SMOOTHED = True
NEEDS_SMOOTHING = True  # the labels' distribution is (1 - e, e)


def loss(pairs: PreferencePairs, settings: LossSettings) -> Tensor:
    """q log(q / (1 - e)) + (1 - q) log((1 - q) / e), q = sigmoid(beta d), [P]; e above 0."""
    margin, e = settings.beta * pairs.difference, settings.label_smoothing
    log_q, log_rest = F.logsigmoid(margin), F.logsigmoid(-margin)
    return log_q.exp() * (log_q - math.log1p(-e)) + log_rest.exp() * (log_rest - math.log(e))

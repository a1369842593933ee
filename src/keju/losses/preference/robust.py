"""Robust DPO (Chowdhury et al. 2024, arXiv 2403.00409, eq. 12): unbiased when a share e of the labels is flipped."""

import torch.nn.functional as F
from torch import Tensor

from keju.losses.preference_pairs import LossSettings, PreferencePairs

SMOOTHED = True


def loss(pairs: PreferencePairs, settings: LossSettings) -> Tensor:
    """[-(1 - e) log sigmoid(beta d) + e log sigmoid(-beta d)] / (1 - 2 e), [P]; e below 1/2."""
    e, margin = settings.label_smoothing, settings.beta * pairs.difference
    return (-(1 - e) * F.logsigmoid(margin) + e * F.logsigmoid(-margin)) / (1 - 2 * e)

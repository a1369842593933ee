"""SLiC's hinge (Zhao et al. 2023, arXiv 2305.10425) on DPO's margin, as in RSO (Liu et al. 2023, arXiv 2309.06657)."""

import torch
from torch import Tensor

from keju.losses.preference_pairs import LossSettings, PreferencePairs


def loss(pairs: PreferencePairs, settings: LossSettings) -> Tensor:
    """max(0, 1 - beta d), [P]."""
    return torch.relu(1 - settings.beta * pairs.difference)

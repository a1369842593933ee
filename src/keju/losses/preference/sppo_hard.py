"""SPPO (Wu et al. 2024, arXiv 2405.00675, eq. 4.7) with hard labels: the winner's probability of winning is 1."""

from torch import Tensor

from keju.losses.preference_pairs import LossSettings, PreferencePairs


def loss(pairs: PreferencePairs, settings: LossSettings) -> Tensor:
    """(r_w - 1 / (2 beta))^2 + (r_l + 1 / (2 beta))^2, [P]."""
    half = 0.5 / settings.beta
    return (pairs.winner.log_ratio - half).square() + (pairs.loser.log_ratio + half).square()

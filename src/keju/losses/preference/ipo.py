"""IPO (Azar et al. 2023, arXiv 2310.12036, eq. 17), with log-ratios averaged over tokens, as its authors confirmed."""

from torch import Tensor

from keju.losses.preference_pairs import LossSettings, PreferencePairs


def loss(pairs: PreferencePairs, settings: LossSettings) -> Tensor:
    """(d - 1 / (2 beta))^2, [P]."""
    winner, loser = (side.log_ratio / side.length for side in pairs)
    return (winner - loser - 1 / (2 * settings.beta)).square()

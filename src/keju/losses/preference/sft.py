"""The language-model loss of the better answers, a term beside preference losses (as in RPO, arXiv 2404.19733)."""

from torch import Tensor

from keju.losses.preference_pairs import LossSettings, PreferencePairs, Side

NEEDS_REFERENCE = False
NEEDS_MEAN_LENGTH = True


def loss(pairs: PreferencePairs, settings: LossSettings) -> Tensor:
    """-log pi_w over the mean length of winners, [P]: its mean over the pairs is that over all tokens of winners."""
    winner = pairs.winner
    return -winner.logprob / (winner.length.mean() if winner.mean_length is None else winner.mean_length)


def reward(side: Side, settings: LossSettings) -> Tensor:
    return settings.beta * side.logprob

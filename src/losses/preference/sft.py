"""The language-model loss of the better answers, a term beside preference losses (as in RPO, arXiv 2404.19733)."""

from torch import Tensor

from keju.losses.preference_pairs import LossSettings, PreferencePairs, Side

NEEDS_REFERENCE = False


def loss(pairs: PreferencePairs, settings: LossSettings) -> Tensor:
    """Mean negative log-probability of a token over the winners that are computed together, the same for each: [P]."""
    winner = pairs.winner
    return (-winner.logprob.sum() / winner.length.sum()).expand(len(winner.length))


def reward(side: Side, settings: LossSettings) -> Tensor:
    return settings.beta * side.logprob

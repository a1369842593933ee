"""ORPO (Hong et al. 2024, arXiv 2403.07691, eq. 6 and 7): the language-model loss and an odds ratio; no reference.

beta is the paper's lambda. The language-model term is that of the answer; TRL's is that of prompt and answer.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from keju.losses.preference import sft
from keju.losses.preference_pairs import LossSettings, PreferencePairs, Side

NEEDS_REFERENCE = False
NEEDS_MEAN_LENGTH = True


def loss(pairs: PreferencePairs, settings: LossSettings) -> Tensor:
    """-log pi_w / mean |y_w| - beta log sigmoid(log odds_w - log odds_l), odds of a token's mean probability, [P]."""
    return sft.loss(pairs, settings) - settings.beta * F.logsigmoid(log_odds(pairs.winner) - log_odds(pairs.loser))


def log_odds(side: Side) -> Tensor:
    """log(p / (1 - p)), p = exp(mean log-probability of a token)."""
    mean = side.logprob / side.length
    # log(1 - e^x) without loss of digits near 0, where p is 1; an answer that is certain has finite odds.
    return mean - torch.log(-torch.expm1(mean.clamp(max=-1e-7)))


def reward(side: Side, settings: LossSettings) -> Tensor:
    return settings.beta * side.logprob / side.length

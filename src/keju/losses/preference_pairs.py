"""What preference losses compare: the log-probabilities of a better and a worse answer, P pairs at once."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Side(NamedTuple):
    """float [P] each, over the tokens of the better, or of the worse, answer of each pair."""

    logprob: Tensor  # of the policy, summed
    ref_logprob: Tensor  # of the reference, summed; zeros where there is none
    length: Tensor  # tokens
    mean_length: Tensor | None = None  # [], over the whole batch; None: these pairs are the whole batch

    @property
    def log_ratio(self) -> Tensor:
        """log pi(y|x) - log pi_ref(y|x)."""
        return self.logprob - self.ref_logprob

    @property
    def numbers(self) -> tuple[Tensor, Tensor, Tensor]:
        """What there is of each pair."""
        return self.logprob, self.ref_logprob, self.length


class PreferencePairs(NamedTuple):
    winner: Side
    loser: Side

    @property
    def difference(self) -> Tensor:
        """The log-ratio of the better answer minus that of the worse: DPO's implicit margin without beta."""
        return self.winner.log_ratio - self.loser.log_ratio


class LossSettings(NamedTuple):
    """beta: how strongly the policy is held to the reference. label_smoothing: chance that a label is wrong."""

    beta: float = 0.1
    label_smoothing: float = 0.0
    simpo_gamma: float = 0.5  # the margin that SimPO asks for
    cpo_alpha: float = 1.0  # weight of CPO's language-model term
    discopop_tau: float = 0.05  # temperature of DiscoPOP's blend

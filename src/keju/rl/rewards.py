"""From scores to rewards: one number an action, with the KL to the reference paid along the way.

Shapes: B responses padded on the right to T actions; `mask` [B, T] is True on the actions of a response, which are its
first tokens without a gap. An action is a generated token; its log-prob is read where it is predicted.
"""

import torch
from torch import Tensor

KL_ESTIMATORS = ("k1", "k2", "k3")
MAX_LOG_RATIO = 20.0  # e^20 = 5e8: far outside of what training should see, far inside float32


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: str = "k1") -> Tensor:
    """Per-token estimate of KL(policy || reference) at tokens sampled from the policy, float32, any shape.

    With d = logprobs - ref_logprobs (Schulman, "Approximating KL divergence", 2020): k1 = d (unbiased, may be
    negative); k2 = d^2 / 2 (biased, small variance); k3 = e^-d - 1 + d (unbiased, never negative).
    """
    difference = (logprobs.float() - ref_logprobs.float()).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference.square() / 2
    if estimator == "k3":
        return torch.expm1(-difference) + difference
    raise ValueError(f"kl_estimator {estimator!r} is not one of {', '.join(KL_ESTIMATORS)}")


def shape_scores(
    scores: Tensor,
    finished: Tensor,
    lengths: Tensor,
    *,
    clip: float | None = None,
    missing_eos_penalty: float = 0.0,
    length_penalty: float = 0.0,
) -> Tensor:
    """The reward model's scores [B] -> terminal rewards [B].

    The clip comes first, so that a penalty is always felt: minus `missing_eos_penalty` for a response that was cut off
    before its EOS (`finished` [B] False), minus `length_penalty` a token (`lengths` [B]).
    """
    shaped = scores.float()
    if clip is not None:
        shaped = shaped.clamp(-clip, clip)
    shaped = shaped - missing_eos_penalty * (~finished).to(shaped.dtype)
    return shaped - length_penalty * lengths.to(shaped.dtype)


def token_rewards(terminal_rewards: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Rewards [B, T] = -kl_coef * kl [B, T], plus terminal_rewards [B] on the last action of each response.

    (Ziegler et al. 2019, eq. 2, paid per token.) The last action is the EOS where one was generated, the last token of
    a response that was cut off, and never a pad: the mask comes from lengths, not from token ids. Zero outside.
    """
    check_prefix_mask(mask)
    rewards = torch.where(mask, -kl_coef * kl.float(), 0.0)
    last = mask.sum(dim=1) - 1
    rows = torch.arange(len(mask), device=mask.device)
    rewards[rows, last] += terminal_rewards.float()
    return rewards


def check_prefix_mask(mask: Tensor) -> None:
    """Responses start at column 0, have no holes and at least one action. ValueError otherwise."""
    if mask.dtype != torch.bool:
        raise ValueError(f"the mask of the actions must be bool, not {mask.dtype}")
    if not bool(mask[:, 0].all()):
        raise ValueError("a response without any action cannot carry a reward")
    if bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        raise ValueError("the mask of the actions has a hole: a response is a prefix of its row")


class RunningMoments:
    """Mean and standard deviation of all scores seen so far (Chan et al.'s parallel update), to normalise rewards.

    `normalise` uses what has been seen up to now, the given batch included, so the first batch is already in units of
    its own deviation, and later ones keep the scale instead of hiding the progress (batch whitening would).
    """

    def __init__(self) -> None:
        self.count, self.mean, self.sum_of_squares = 0, 0.0, 0.0

    @property
    def std(self) -> float:
        """Of the sample (n - 1); 1 while fewer than two scores, or only equal ones, are known."""
        if self.count < 2 or self.sum_of_squares <= 0:
            return 1.0
        return (self.sum_of_squares / (self.count - 1)) ** 0.5

    def update(self, scores: Tensor) -> None:
        scores = scores.double()
        count, mean = scores.numel(), float(scores.mean())
        squares = float((scores - mean).square().sum())
        difference = mean - self.mean
        total = self.count + count
        self.sum_of_squares += squares + difference**2 * self.count * count / total
        self.mean += difference * count / total
        self.count = total

    def normalise(self, scores: Tensor) -> Tensor:
        """(scores - mean) / std, float32."""
        return ((scores.double() - self.mean) / (self.std + 1e-8)).float()

    def state_dict(self) -> dict[str, float]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, float]) -> None:
        vars(self).update(state)


class FixedKLController:
    """The coefficient of the KL stays what it is."""

    def __init__(self, coef: float) -> None:
        self.coef = coef

    def update(self, kl: float, num_responses: int) -> None:
        pass

    def state_dict(self) -> dict[str, float]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, float]) -> None:
        vars(self).update(state)


class AdaptiveKLController(FixedKLController):
    """Log-space proportional controller (Ziegler et al. 2019, section 2.2): the coefficient follows a target KL.

    e = clip(kl / target - 1, -0.2, 0.2); coef *= 1 + e * num_responses / horizon. `kl` is summed over a response.
    """

    def __init__(self, coef: float, target: float, horizon: int) -> None:
        super().__init__(coef)
        self.target, self.horizon = target, horizon

    def update(self, kl: float, num_responses: int) -> None:
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.coef *= 1 + error * num_responses / self.horizon

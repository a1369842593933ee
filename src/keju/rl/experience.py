"""From scored rollouts to experience: rewards, advantages and returns of every action."""

from dataclasses import dataclass, field

from torch import Tensor

from keju.errors import UserError
from keju.rl.advantages import explained_variance, gae, masked_mean, whiten
from keju.rl.diversity import distinct, repetition
from keju.rl.mismatch import rollout_mismatch
from keju.rl.rewards import FixedKLController, RunningMoments, kl_estimate, shape_scores, token_rewards
from keju.rl.scoring import Scored

KL_IN_LOSS = "the gradient of --kl_estimator k1 is 0 in expectation; choose k2 or k3"


@dataclass
class Experience(Scored):
    terminal_rewards: Tensor = field(kw_only=True)  # [B] normalised, clipped, penalised scores
    rewards: Tensor = field(kw_only=True)  # [B, T]
    advantages: Tensor = field(kw_only=True)  # [B, T]
    returns: Tensor = field(kw_only=True)  # [B, T]

    def metrics(self) -> dict[str, float]:
        """Means over responses, but for those that say otherwise."""
        kl = self.kl
        sampled = [response for rollout in self.rollouts for response in rollout.responses]
        responses = [response.ids for response in sampled]
        judged = {} if self.judge_scores is None else {"judge": float(self.judge_scores.mean())}
        return (
            judged
            | rollout_mismatch(sampled, self.logprobs)
            | {
                "reward": float(self.scores.mean()),
                "reward_std": float(self.scores.std(unbiased=False)),
                "terminal_reward": float(self.terminal_rewards.mean()),
                "kl": float(kl.mean()),
                "kl_per_token": float(kl.sum() / self.loss_mask.sum()),
                "ref_logprob": float(masked_mean(self.ref_logprobs, self.loss_mask)),
                "distinct_1": distinct(responses, 1),
                "distinct_2": distinct(responses, 2),
                "repetition": repetition(responses),
                "response_length": float(self.lengths.float().mean()),
                "fraction_finished": float(self.finished.float().mean()),
                "value": float(masked_mean(self.values, self.loss_mask)),
                "return": float(masked_mean(self.returns, self.loss_mask)),
                "explained_variance": explained_variance(self.values, self.returns, self.loss_mask),
            }
        )


@dataclass
class RewardShaping:
    """Turns scores into rewards and advantages. `moments` None: not normalised; `clip_reward` None: not clipped.

    `kl_in_loss`: the KL to the reference is no part of the reward but a term of the policy loss (GRPO's way). Its
    gradient there needs k2 or k3: that of k1 is 0 in expectation (the mean of grad log p). Raises UserError for it.
    """

    kl_controller: FixedKLController
    kl_estimator: str = "k1"
    kl_in_loss: bool = False
    moments: RunningMoments | None = None
    clip_reward: float | None = 5.0
    missing_eos_penalty: float = 0.0
    length_penalty: float = 0.0
    gamma: float = 1.0
    lam: float = 0.95
    whiten_advantages: bool = True

    def __post_init__(self) -> None:
        if self.kl_in_loss and self.kl_estimator == "k1":
            raise UserError(KL_IN_LOSS, option="kl_in_loss")

    def experience(self, scored: Scored) -> Experience:
        # 1. Scores in units of their own running deviation, then clipped, then penalised.
        scores = scored.scores
        if self.moments is not None:
            self.moments.update(scores)
            scores = self.moments.normalise(scores)
        terminal_rewards = shape_scores(
            scores,
            scored.finished,
            scored.lengths,
            clip=self.clip_reward,
            missing_eos_penalty=self.missing_eos_penalty,
            length_penalty=self.length_penalty,
        )
        # 2. The KL to the reference is paid at every action, the score at the last one.
        kl = kl_estimate(scored.logprobs, scored.ref_logprobs, self.kl_estimator)
        kl_coef = 0.0 if self.kl_in_loss else self.kl_controller.coef
        rewards = token_rewards(terminal_rewards, kl, scored.mask, kl_coef)
        # 3. Advantages and returns once a rollout, not once an epoch.
        advantages, returns = gae(rewards, scored.values, scored.mask, self.gamma, self.lam)
        # 4. Whitening over the actions of the whole rollout, after the returns are taken.
        if self.whiten_advantages:
            advantages = whiten(advantages, scored.loss_mask)
        return Experience(
            **vars(scored),
            terminal_rewards=terminal_rewards,
            rewards=rewards,
            advantages=advantages,
            returns=returns,
        )

"""PPO over token trees: sample, score, update (Schulman et al. 2017; the mixture with a language-model loss is "ptx" of
InstructGPT, Ouyang et al. 2022).

One step: a batch of prompts -> several responses each -> log-probs, reference log-probs, values and scores from one
pass of each model over the trees -> rewards and advantages, once -> `ppo_epochs` x `num_mini_batches` optimizer steps
of actor and critic over the same trees. Everything random is seeded by (seed, step), so that a step depends on nothing
but the weights and its number.
"""

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel, get_scheduler

from keju.models.backbone import tree_cross_entropy, tree_logprobs
from keju.rl.advantages import masked_mean
from keju.rl.experience import Experience, RewardShaping
from keju.models.gathering import gathered
from keju.rl.losses import policy_loss, value_loss
from keju.rl.modes import rules_of
from keju.rl.response_trees import action_coordinates, packed
from keju.rl.rewards import kl_estimate
from keju.rl.rollout import Rollout, Sampler
from keju.rl.scoring import Reader, Scored, score_rollouts, state_values
from keju.rl.translation import Translation
from keju.rl.weight_average import WeightAverage
from keju.training.crash import NonFiniteLoss
from keju.training.objectives.reward import RewardObjective
from keju.trees.packed_batch import PackedBatch
from keju.trees.segment import Segment


@dataclass
class PPOTrainer:
    """actor: causal LM; critic and reward_model: one number a token; reference: the frozen start of the actor.

    `prompts` are token ids; `translation` reads responses to a reward model of another tokenizer; `judge` scores them,
    too, and trains nobody. `ptx_trees` carry a language-model loss that is added, times `ptx_coef`, in the same step.

    Joint optimisation of reward and policy: `critic` is `reward_model`, one model of two outputs (reward, value), whose
    reward goes on learning from the ranked answers in `ranked_trees` (times `reward_coef`) while its value is learned.

    For the first `value_warmup_steps` rollouts the critic alone is trained. `early_stop_kl`: once the policy is further
    than so many nats a token from the one that generated (approx_kl of a minibatch), the rest of the rollout's updates
    are left out. The learning rates are peaks of `lr_scheduler_type` with `warmup_steps` optimizer steps. `ema_decay`
    0: no moving average of the actor is kept. `bf16`: autocast.
    """

    actor: PreTrainedModel
    critic: PreTrainedModel
    reference: PreTrainedModel
    reward_model: PreTrainedModel
    sampler: Sampler
    shaping: RewardShaping
    prompts: Sequence[Sequence[int]]
    max_steps: int
    rollout_batch_size: int
    token_budget: int
    ppo_mode: str = "keju"
    ppo_epochs: int = 1
    num_mini_batches: int = 1
    actor_learning_rate: float = 1e-6
    critic_learning_rate: float = 5e-6
    weight_decay: float = 0.0
    lr_scheduler_type: str = "cosine"
    warmup_steps: int = 0
    max_grad_norm: float = 1.0
    cliprange: float = 0.2
    cliprange_value: float = 0.2
    ptx_trees: Sequence[Segment] = ()
    ptx_coef: float = 1.0
    ptx_batch_size: int = 0
    ema_decay: float = 0.0
    translation: Translation | None = None
    judge: Reader | None = None
    ranked_trees: Sequence[Segment] = ()
    reward_coef: float = 1.0
    value_warmup_steps: int = 0
    early_stop_kl: float | None = None
    bf16: bool = False
    seed: int = 0
    step: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError("--train_filename: no prompt to learn from")
        if not 1 <= self.num_mini_batches <= self.rollout_batch_size:
            raise ValueError(
                f"--num_mini_batches {self.num_mini_batches}: must be between 1 and --rollout_batch_size "
                f"{self.rollout_batch_size}"
            )
        self.rules = rules_of(self.ppo_mode)
        self.temperature = self.sampler.temperature if self.rules.scores_at_temperature else 1.0
        self.ptx_batch_size = self.ptx_batch_size or math.ceil(self.rollout_batch_size / self.num_mini_batches)
        self.is_joint = self.critic is self.reward_model
        if self.is_joint != bool(self.ranked_trees):
            raise ValueError("ranked_trees belong to joint optimisation, where the critic is the reward model")
        for frozen in (self.reference, *([] if self.is_joint else [self.reward_model])):
            frozen.requires_grad_(False)
        if self.judge is not None:
            self.judge.model.requires_grad_(False).eval()
        for model in (self.actor, self.critic, self.reference, self.reward_model):
            model.eval()  # and stays so: with dropout the first ratio is not 1
        self.average = WeightAverage(self.actor, self.ema_decay) if self.ema_decay else None
        num_updates = self.max_steps * self.ppo_epochs * self.num_mini_batches
        self.optimizers, self.schedulers = {}, {}
        for name, model, rate in (
            ("actor", self.actor, self.actor_learning_rate),
            ("critic", self.critic, self.critic_learning_rate),
        ):
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            optimizer = torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.95), weight_decay=self.weight_decay)
            self.optimizers[name] = optimizer
            self.schedulers[name] = get_scheduler(
                self.lr_scheduler_type, optimizer, num_warmup_steps=self.warmup_steps, num_training_steps=num_updates
            )

    # -- one step ----------------------------------------------------------------------------------------------------

    def train_step(self) -> tuple[Experience, dict[str, float]]:
        """Samples, scores and updates once. Returns the experience and the metrics of the step."""
        self.step += 1
        start = time.perf_counter()
        prompts = [self.prompts[index] for index in self._prompt_indices(self.step)]
        rollouts = self.sample(prompts, self._seed("rollout"))
        sampled = time.perf_counter()
        experience = self.shaping.experience(self.score(rollouts))
        scored = time.perf_counter()

        updates = self._updates(experience)
        finished = time.perf_counter()

        kl_coef = self.shaping.kl_controller.coef
        self.shaping.kl_controller.update(float(experience.kl.mean()), len(experience.scores))
        num_generated = int(experience.lengths.sum())
        metrics = experience.metrics() | _means(updates)
        metrics |= {
            "num_updates": len(updates),
            "kl_coef": kl_coef,
            "num_tokens": num_generated,
            "tokens_per_second": num_generated / (finished - start),
            "seconds_rollout": sampled - start,
            "seconds_scoring": scored - sampled,
            "seconds_update": finished - scored,
        }
        if math.isnan(metrics["explained_variance"]):
            del metrics["explained_variance"]  # all returns are equal
        return experience, metrics

    def _updates(self, experience: Experience) -> list[dict[str, float]]:
        """The optimizer steps of a rollout; the figures of each that was taken."""
        generator = torch.Generator().manual_seed(self._seed("minibatches"))
        taken: list[dict[str, float]] = []
        stopped = False
        for _ in range(self.ppo_epochs):
            order = torch.randperm(len(experience.trees), generator=generator)
            for chosen in order.tensor_split(self.num_mini_batches):
                trees = [experience.trees[index] for index in chosen.tolist()]
                auxiliary = self._draw_auxiliary(generator)
                if not stopped and trees:
                    limit = self.early_stop_kl if taken else None  # the first is that of the policy that generated
                    found = self.update(experience, trees, *auxiliary, stop_above=limit)
                    stopped = found is None
                    taken += [found] if found is not None else []
                self._advance_schedules()  # those of updates that are left out, too: the schedule ends with the run
        return taken

    def sample(self, prompts: Sequence[Sequence[int]], seed: int) -> list[Rollout]:
        with self._precision(), gathered(self.actor):
            return self.sampler.sample(self.actor, prompts, seed)

    def score(self, rollouts: Sequence[Rollout]) -> Scored:
        with self._precision():
            return score_rollouts(
                rollouts,
                actor=self.actor,
                reference=self.reference,
                critic=self.critic,
                reward=Reader(self.reward_model, self.translation),
                judge=self.judge,
                mode=self.ppo_mode,
                pad_id=self.sampler.pad_id,
                temperature=self.sampler.temperature,
                token_budget=self.token_budget,
            )

    def _precision(self) -> torch.autocast:
        """The same for sampling, scoring and updates: old and new log-probs have equal rounding."""
        return torch.autocast(self.actor.device.type, torch.bfloat16, enabled=self.bf16)

    def update(
        self,
        experience: Experience,
        trees: Sequence[Segment],
        ptx: Sequence[Segment] = (),
        ranked: Sequence[Segment] = (),
        *,
        stop_above: float | None = None,
    ) -> dict[str, float] | None:
        """One optimizer step of actor and critic on a minibatch of trees, in as many packs as the budget asks for.

        None, and nothing changed, when the policy has moved further than `stop_above` (approx_kl, nats a token).
        """
        metrics = self.backward(experience, trees)
        if stop_above is not None and metrics["approx_kl"] > stop_above:
            for optimizer in self.optimizers.values():
                optimizer.zero_grad(set_to_none=True)
            return None
        if ptx and self.trains_policy:
            metrics["ptx_loss"] = self._backward_ptx(ptx)
        if ranked:
            metrics |= self._backward_ranked(ranked)
        for name, model in (("actor", self.actor), ("critic", self.critic)):
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), self.max_grad_norm)
            metrics[f"{name}_grad_norm"] = float(norm)
            metrics[f"{name}_learning_rate"] = self.schedulers[name].get_last_lr()[0]
        broken = [name for name, number in metrics.items() if not math.isfinite(number)]
        if broken:  # before the weights take it in
            raise NonFiniteLoss(self.step, name=", ".join(broken))
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.actor)
        return metrics

    def _advance_schedules(self) -> None:
        for scheduler in self.schedulers.values():
            scheduler.step()

    @property
    def trains_policy(self) -> bool:
        """Not while the critic warms up."""
        return self.step > self.value_warmup_steps or not self.step

    def backward(self, experience: Experience, trees: Sequence[Segment]) -> dict[str, float]:
        """Gradients of policy and value loss of a minibatch, token means over all of it; the figures of both."""
        rows = [int(branch.values["row"]) for tree in trees for branch in tree.branches]
        num_tokens = experience.loss_mask[rows].sum()
        metrics: Counter[str] = Counter()
        for batch in packed(trees, self.token_budget, self.actor.device):
            at = action_coordinates(batch)
            # One after the other: the activations of the actor are gone before the critic's are made.
            parts = self._policy_backward(experience, batch, at, num_tokens)
            parts |= self._value_backward(experience, batch, at, num_tokens)
            metrics.update({name: float(part.detach()) for name, part in parts.items()})
        return dict(metrics)

    def _policy_backward(
        self, experience: Experience, batch: PackedBatch, at: tuple[Tensor, Tensor], num_tokens: Tensor
    ) -> dict[str, Tensor]:
        mask = experience.loss_mask[at]
        with torch.set_grad_enabled(self.trains_policy), self._precision():
            new = tree_logprobs(self.actor, batch, temperature=self.temperature, with_entropy=True)
        policy = policy_loss(
            new.logprobs, experience.logprobs[at], experience.advantages[at], mask, self.cliprange, num_tokens
        )
        loss, figures = policy.loss, {}
        if self.shaping.kl_in_loss:
            kl = kl_estimate(new.logprobs, experience.ref_logprobs[at], self.shaping.kl_estimator)
            figures["kl_loss"] = masked_mean(kl, mask, num_tokens)
            loss = loss + self.shaping.kl_controller.coef * figures["kl_loss"]
        if self.trains_policy:
            (loss * (0.5 if self.rules.halves_with_ptx and self.ptx_trees else 1.0)).backward()
        return figures | {
            "policy_loss": policy.loss,
            "entropy": masked_mean(new.entropy.detach(), mask, num_tokens),
            "clip_fraction": policy.clip_fraction,
            "approx_kl": policy.approx_kl,
            "ratio": policy.ratio,
        }

    def _value_backward(
        self, experience: Experience, batch: PackedBatch, at: tuple[Tensor, Tensor], num_tokens: Tensor
    ) -> dict[str, Tensor]:
        with self._precision():
            values = state_values(self.critic, batch)
        value = value_loss(
            values,
            experience.values[at],
            experience.returns[at],
            experience.loss_mask[at],
            self.cliprange_value,
            num_tokens,
        )
        value.loss.backward()
        return {"value_loss": value.loss, "value_clip_fraction": value.clip_fraction}

    def _backward_ptx(self, trees: Sequence[Segment]) -> float:
        weight = self.ptx_coef * (0.5 if self.rules.halves_with_ptx else 1.0)
        num_tokens, loss = sum(tree.num_predictions for tree in trees), 0.0
        for batch in packed(trees, self.token_budget, self.actor.device):
            with self._precision():
                part = tree_cross_entropy(self.actor, batch) / num_tokens
            (weight * part).backward()
            loss += float(part.detach())
        return loss

    def _backward_ranked(self, trees: Sequence[Segment]) -> dict[str, float]:
        """The loss of the reward model on ranked answers, as it was trained (mean over pairs)."""
        objective = RewardObjective()
        batches = list(packed(trees, self.token_budget, self.critic.device))
        num_pairs = sum(objective.num_items(batch) for batch in batches)
        loss = correct = 0.0
        for batch in batches:
            with self._precision():
                found = objective(self.critic, batch)
            (self.reward_coef * found.loss_sum / num_pairs).backward()
            loss += float(found.loss_sum.detach())
            correct += float(found.metrics["accuracy"][0])
        return {"reward_loss": loss / num_pairs, "reward_accuracy": correct / num_pairs}

    # -- what a step looks at ----------------------------------------------------------------------------------------

    def _seed(self, purpose: str) -> int:
        return (self.seed * 1_000_003 + self.step) * 2 + (purpose == "minibatches")

    def _prompt_indices(self, step: int) -> list[int]:
        """The prompts of a step: one shuffled epoch after the other, without a gap."""
        start = (step - 1) * self.rollout_batch_size
        places = [divmod(position, len(self.prompts)) for position in range(start, start + self.rollout_batch_size)]
        orders = {
            epoch: torch.randperm(
                len(self.prompts), generator=torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            )
            for epoch in {epoch for epoch, _ in places}
        }
        return [int(orders[epoch][offset]) for epoch, offset in places]

    def _draw_auxiliary(self, generator: torch.Generator) -> tuple[list[Segment], list[Segment]]:
        """Text for the language-model loss and ranked answers for the reward model, of one minibatch."""

        def draw(trees: Sequence[Segment]) -> list[Segment]:
            if not trees:
                return []
            chosen = torch.randint(len(trees), (self.ptx_batch_size,), generator=generator)
            return [trees[index] for index in chosen.tolist()]

        return draw(self.ptx_trees if self.ptx_coef else ()), draw(self.ranked_trees)


def _means(updates: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: sum(update[name] for update in updates) / len(updates) for name in updates[0]}


def evaluate_policy(
    trainer: PPOTrainer, prompts: Sequence[Sequence[int]], seed: int
) -> tuple[Scored, dict[str, float]]:
    """Samples responses to `prompts` with a seed of its own and scores them; nothing is learned.

    Returns mean reward (raw), KL to the reference (nats a response), length and the share that ended by themselves.
    """
    scored = trainer.score(trainer.sample(prompts, seed))
    judged = {} if scored.judge_scores is None else {"judge": float(scored.judge_scores.mean())}
    return scored, judged | {
        "reward": float(scored.scores.mean()),
        "reward_std": float(scored.scores.std(unbiased=False)),
        "kl": float(scored.kl.mean()),
        "response_length": float(scored.lengths.float().mean()),
        "fraction_finished": float(scored.finished.float().mean()),
    }

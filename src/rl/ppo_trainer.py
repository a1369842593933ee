"""PPO over token trees: sample, score, update (Schulman et al. 2017; the mixture with a language-model loss is "ptx" of
InstructGPT, Ouyang et al. 2022).

One step: a batch of prompts -> several responses each -> log-probs, reference log-probs, values and scores from one
pass of each model over the trees -> rewards and advantages, once -> `ppo_epochs` x `num_mini_batches` optimizer steps
of actor and critic over the same trees. Everything random is seeded by (seed, step), so that a step depends on nothing
but the weights and its number.
"""

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel, get_scheduler

from keju.models.backbone import tree_cross_entropy, tree_logprobs, tree_token_scores
from keju.rl.experience import (
    Experience,
    RewardShaping,
    Scored,
    action_coordinates,
    packed,
    score_rollouts,
)
from keju.rl.losses import policy_loss, value_loss
from keju.rl.modes import rules_of
from keju.rl.rollout import Rollout, Sampler
from keju.training.crash import NonFiniteLoss
from keju.trees.segment import Segment


@dataclass
class PPOTrainer:
    """actor: causal LM; critic and reward_model: one number a token; reference: the frozen start of the actor.

    `prompts` are token ids; `ptx_trees` carry a language-model loss that is added, times `ptx_coef`, in the same
    optimizer step. The learning rates are peaks of `lr_scheduler_type` with `warmup_steps` optimizer steps. `ema_decay`
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
        for frozen in (self.reference, self.reward_model):
            frozen.requires_grad_(False)
        for model in (self.actor, self.critic, self.reference, self.reward_model):
            model.eval()  # and stays so: with dropout the first ratio is not 1
        self.ema_actor = copy.deepcopy(self.actor).float().requires_grad_(False) if self.ema_decay else None
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

        generator = torch.Generator().manual_seed(self._seed("minibatches"))
        updates = []
        for _ in range(self.ppo_epochs):
            order = torch.randperm(len(experience.trees), generator=generator)
            for chosen in order.tensor_split(self.num_mini_batches):
                if len(chosen):
                    trees = [experience.trees[index] for index in chosen.tolist()]
                    updates.append(self.update(experience, trees, self._draw_ptx(generator)))
        finished = time.perf_counter()

        kl_coef = self.shaping.kl_controller.coef
        self.shaping.kl_controller.update(float(experience.kl.mean()), len(experience.scores))
        num_generated = int(experience.lengths.sum())
        metrics = experience.metrics() | {
            name: sum(update[name] for update in updates) / len(updates) for name in updates[0]
        }
        metrics |= {
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

    def sample(self, prompts: Sequence[Sequence[int]], seed: int) -> list[Rollout]:
        with self._precision():
            return self.sampler.sample(self.actor, prompts, seed)

    def score(self, rollouts: Sequence[Rollout]) -> Scored:
        with self._precision():
            return score_rollouts(
                rollouts,
                actor=self.actor,
                reference=self.reference,
                critic=self.critic,
                reward_model=self.reward_model,
                mode=self.ppo_mode,
                pad_id=self.sampler.pad_id,
                temperature=self.sampler.temperature,
                token_budget=self.token_budget,
            )

    def _precision(self) -> torch.autocast:
        """The same for sampling, scoring and updates: old and new log-probs have equal rounding."""
        return torch.autocast(self.actor.device.type, torch.bfloat16, enabled=self.bf16)

    def update(self, experience: Experience, trees: Sequence[Segment], ptx: Sequence[Segment] = ()) -> dict[str, float]:
        """One optimizer step of actor and critic on a minibatch of trees, in as many packs as the budget asks for."""
        self.backward(experience, trees, metrics := {})
        if ptx:
            metrics["ptx_loss"] = self._backward_ptx(ptx)
        for name, model in (("actor", self.actor), ("critic", self.critic)):
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), self.max_grad_norm)
            metrics[f"{name}_grad_norm"] = float(norm)
            metrics[f"{name}_learning_rate"] = self.schedulers[name].get_last_lr()[0]
        broken = [name for name, number in metrics.items() if not math.isfinite(number)]
        if broken:  # before the weights take it in
            raise NonFiniteLoss(self.step, name=", ".join(broken))
        for name, optimizer in self.optimizers.items():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            self.schedulers[name].step()
        if self.ema_actor is not None:
            self._move_average()
        return metrics

    def backward(self, experience: Experience, trees: Sequence[Segment], metrics: dict[str, float]) -> None:
        """Gradients of policy and value loss of a minibatch, token means over all of it; adds figures to `metrics`."""
        rows = [int(branch.values["row"]) for tree in trees for branch in tree.branches]
        num_tokens = experience.loss_mask[rows].sum()
        weight = 0.5 if self.rules.halves_with_ptx and self.ptx_trees else 1.0
        for batch in packed(trees, self.token_budget, self.actor.device):
            rows, columns = action_coordinates(batch)
            mask = experience.loss_mask[rows, columns]
            with self._precision():
                new = tree_logprobs(self.actor, batch, temperature=self.temperature, with_entropy=True)
                values = tree_token_scores(self.critic, batch)[batch.source]
            policy = policy_loss(
                new.logprobs,
                experience.logprobs[rows, columns],
                experience.advantages[rows, columns],
                mask,
                self.cliprange,
                num_tokens,
            )
            (weight * policy.loss).backward()
            value = value_loss(
                values,
                experience.values[rows, columns],
                experience.returns[rows, columns],
                mask,
                self.cliprange_value,
                num_tokens,
            )
            value.loss.backward()
            for name, part in {
                "policy_loss": policy.loss,
                "value_loss": value.loss,
                "entropy": new.entropy.detach()[mask].sum() / num_tokens,
                "clip_fraction": policy.clip_fraction,
                "value_clip_fraction": value.clip_fraction,
                "approx_kl": policy.approx_kl,
                "ratio": policy.ratio,
            }.items():
                metrics[name] = metrics.get(name, 0.0) + float(part.detach())

    def _backward_ptx(self, trees: Sequence[Segment]) -> float:
        weight = self.ptx_coef * (0.5 if self.rules.halves_with_ptx else 1.0)
        num_tokens, loss = sum(tree.num_predictions for tree in trees), 0.0
        for batch in packed(trees, self.token_budget, self.actor.device):
            with self._precision():
                part = tree_cross_entropy(self.actor, batch) / num_tokens
            (weight * part).backward()
            loss += float(part.detach())
        return loss

    @torch.no_grad()
    def _move_average(self) -> None:
        """ema = decay * ema + (1 - decay) * weights, in float32."""
        for average, parameter in zip(self.ema_actor.parameters(), self.actor.parameters(), strict=True):
            average.lerp_(parameter.float(), 1 - self.ema_decay)

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

    def _draw_ptx(self, generator: torch.Generator) -> list[Segment]:
        if not self.ptx_trees or not self.ptx_coef:
            return []
        chosen = torch.randint(len(self.ptx_trees), (self.ptx_batch_size,), generator=generator)
        return [self.ptx_trees[index] for index in chosen.tolist()]


def evaluate_policy(
    trainer: PPOTrainer, prompts: Sequence[Sequence[int]], seed: int
) -> tuple[Scored, dict[str, float]]:
    """Samples responses to `prompts` with a seed of its own and scores them; nothing is learned.

    Returns mean reward (raw), KL to the reference (nats a response), length and the share that ended by themselves.
    """
    scored = trainer.score(trainer.sample(prompts, seed))
    return scored, {
        "reward": float(scored.scores.mean()),
        "reward_std": float(scored.scores.std(unbiased=False)),
        "kl": float(scored.kl.mean()),
        "response_length": float(scored.lengths.float().mean()),
        "fraction_finished": float(scored.finished.float().mean()),
    }

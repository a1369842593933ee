"""PPO over token trees: sample, score, update (Schulman et al. 2017; the mixture with a language-model loss is "ptx" of
InstructGPT, Ouyang et al. 2022).

One step: a batch of prompts -> several responses each -> log-probs, reference log-probs, values and scores from one
pass of each model over the trees -> rewards and advantages, once -> `ppo_epochs` x `num_mini_batches` optimizer steps
of actor and critic over the same trees. Everything random is seeded by (seed, step), so that a step depends on nothing
but the weights and its number.

In a run of several processes each samples for its share of the prompts and computes its share of the packs; what comes
out is summed up, so that every process knows the whole rollout, and all that follows is as in one process.
"""

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from keju.errors import UserError
from keju.models.backbone import tree_cross_entropy, tree_logprobs
from keju.models.gathering import gathered
from keju.rl.advantages import masked_mean
from keju.rl.experience import Experience, RewardShaping
from keju.rl.learners import Learner, LearnerSettings
from keju.rl.losses import ValueLoss, policy_loss, value_loss
from keju.rl.modes import rules_of
from keju.rl.prompt_order import step_indices
from keju.rl.response_trees import action_coordinates, own_batches
from keju.rl.rewards import kl_estimate
from keju.rl.rollout import Rollout, Sampler, collect_rollouts
from keju.rl.scoring import Reader, Scored, score_rollouts, state_values
from keju.rl.translation import Translation
from keju.rl.weight_average import WeightAverage
from keju.training.crash import NonFiniteLoss, name_records
from keju.training.engines import frozen_passes
from keju.training.objectives.reward import RewardObjective
from keju.training.processes import num_processes, process_index, sum_figures
from keju.training.stage_model import passes_of
from keju.trees.packed_batch import PackedBatch
from keju.trees.segment import Segment


@dataclass
class PPOTrainer:
    """actor: causal LM; critic and reward_model: one number a token; reference: the frozen start of the actor.

    `prompts` are token ids of records at `where`; `translation` reads responses to a reward model of another tokenizer;
    `judge` scores them, too, and trains nobody. `ptx_trees` carry a language-model loss, which counts `ptx_coef` times.

    Joint optimisation of reward and policy: `critic` is `reward_model`, one model of two outputs (reward, value), whose
    reward goes on learning from the ranked answers in `ranked_trees` (times `reward_coef`) while its value is learned.

    deepspeed: a configuration (see keju.training.engines); actor and critic are engines then, and ZeRO-3 cuts up the
    frozen models, too.

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
    optim: str = "adamw_torch"
    optim_args: str | None = None
    loraplus_lr_ratio: float = 1.0
    lr_scheduler_type: str = "cosine"
    warmup_steps: int = 0
    max_grad_norm: float = 1.0
    cliprange: float = 0.2
    cliprange_value: float = 0.2
    where: Sequence[str] = ()
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
    activation_checkpointing: bool = False
    deepspeed: dict[str, Any] | None = None
    seed: int = 0
    step: int = field(default=0, init=False)
    chosen: list[int] = field(default_factory=list, init=False)  # the prompts of the step

    def __post_init__(self) -> None:
        if not self.prompts:
            raise UserError("no prompt to learn from", option="train_filename")
        if not 1 <= self.num_mini_batches <= self.rollout_batch_size:
            raise UserError(
                f"must be between 1 and --rollout_batch_size {self.rollout_batch_size}, got {self.num_mini_batches}",
                option="num_mini_batches",
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
        own = {item.name: getattr(self, item.name) for item in fields(LearnerSettings) if hasattr(self, item.name)}
        settings = LearnerSettings(**own, num_updates=self.max_steps * self.ppo_epochs * self.num_mini_batches)
        self.learners = {
            "actor": Learner(self.actor, self.actor_learning_rate, settings),
            "critic": Learner(self.critic, self.critic_learning_rate, settings),
        }
        self._passes = {id(learner.model): learner.passes for learner in self.learners.values()}
        if self.deepspeed is not None:
            judges = [self.judge.model] if self.judge is not None else []
            frozen = [model for model in (self.reference, self.reward_model, *judges) if id(model) not in self._passes]
            self._passes |= {id(model): frozen_passes(model, self.deepspeed) for model in frozen}
        self.average = WeightAverage(self.actor, self.ema_decay) if self.ema_decay else None

    # -- one step ----------------------------------------------------------------------------------------------------

    def train_step(self) -> tuple[Experience, dict[str, float]]:
        """Samples, scores and updates once. Returns the experience and the metrics of the step."""
        self.step += 1
        start = time.perf_counter()
        self.chosen = step_indices(len(self.prompts), self.rollout_batch_size, self.step, self.seed)
        rollouts = self.sample([self.prompts[index] for index in self.chosen], self._seed("rollout"))
        sampled = time.perf_counter()
        experience = self.shaping.experience(self.score(rollouts))
        scored = time.perf_counter()

        with self.learners["actor"].recomputing(), self.learners["critic"].recomputing():
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
        """Responses to all prompts, on every process; each makes those of its share."""
        own = range(process_index(), len(prompts), num_processes())
        with self._precision(), gathered(self.passes(self.actor)):
            made = self.sampler.sample(self.actor, [prompts[number] for number in own], seed, numbers=own)
        return collect_rollouts(made, own, prompts, self.sampler, self.actor.device)

    def score(self, rollouts: Sequence[Rollout]) -> Scored:
        judge = self.judge
        with self._precision():
            return score_rollouts(
                rollouts,
                actor=self.passes(self.actor),
                reference=self.passes(self.reference),
                critic=self.passes(self.critic),
                reward=Reader(self.passes(self.reward_model), self.translation),
                judge=None if judge is None else Reader(self.passes(judge.model), judge.translation),
                mode=self.ppo_mode,
                pad_id=self.sampler.pad_id,
                temperature=self.sampler.temperature,
                token_budget=self.token_budget,
            )

    def passes(self, model: PreTrainedModel) -> nn.Module:
        """What computes passes of a model: see StageModel."""
        return self._passes.get(id(model)) or passes_of(model)

    def _precision(self) -> torch.autocast:
        """The same for sampling, scoring and updates: old and new log-probs have equal rounding."""
        enabled = self.bf16 and self.deepspeed is None  # engines bring their own
        return torch.autocast(self.actor.device.type, torch.bfloat16, enabled=enabled)

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
        ptx = ptx if self.trains_policy else ()
        if stop_above is not None and self._approx_kl(experience, trees) > stop_above:
            return None
        metrics = self.backward(experience, trees, more_of_actor=bool(ptx), more_of_critic=bool(ranked))
        if ptx:
            metrics["ptx_loss"] = self._backward_ptx(ptx)
        if ranked:
            metrics |= self._backward_ranked(ranked)
        self._check_finite(metrics)  # before the weights take it in
        for name, learner in self.learners.items():
            metrics[f"{name}_learning_rate"] = learner.learning_rate
            metrics[f"{name}_grad_norm"] = learner.step()
        self._check_finite(metrics)
        if self.average is not None:
            self.average.update(self.actor)
        return metrics

    def _check_finite(self, metrics: dict[str, float]) -> None:
        broken = [name for name, number in metrics.items() if not math.isfinite(number)]
        if broken:
            places = [self.where[index] for index in self.chosen] if self.where else []
            raise NonFiniteLoss(self.step, name_records(places), name=", ".join(broken))

    def _advance_schedules(self) -> None:
        for learner in self.learners.values():
            learner.scheduler.step()

    @property
    def trains_policy(self) -> bool:
        """Not while the critic warms up."""
        return self.step > self.value_warmup_steps or not self.step

    def backward(
        self,
        experience: Experience,
        trees: Sequence[Segment],
        *,
        more_of_actor: bool = False,
        more_of_critic: bool = False,
    ) -> dict[str, float]:
        """Gradients of policy and value loss of a minibatch, token means over all of it; the figures of both.

        more_of_actor, more_of_critic: gradients of another loss follow before the optimizer step.
        """
        num_tokens = self._num_tokens(experience, trees)
        metrics: Counter[str] = Counter()
        shares = own_batches(trees, self.token_budget, self.actor.device)
        for number, (batch, counts) in enumerate(shares, start=1):
            at = action_coordinates(batch)
            is_last = number == len(shares)
            # One after the other: the activations of the actor are gone before the critic's are made.
            loss, parts = self._policy_loss(experience, batch, at, num_tokens)
            if self.trains_policy:
                self.learners["actor"].backward(loss * counts, is_last=is_last and not more_of_actor)
            value = self._value_loss(experience, batch, at, num_tokens)
            self.learners["critic"].backward(value.loss * counts, is_last=is_last and not more_of_critic)
            parts |= {"value_loss": value.loss, "value_clip_fraction": value.clip_fraction}
            metrics.update({name: float(part.detach()) * counts for name, part in parts.items()})
        return sum_figures(metrics, self.actor.device)

    def _policy_loss(
        self, experience: Experience, batch: PackedBatch, at: tuple[Tensor, Tensor], num_tokens: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What is minimised, and figures, of a part of a minibatch of `num_tokens` actions."""
        mask = experience.loss_mask[at]
        with torch.set_grad_enabled(self.trains_policy and torch.is_grad_enabled()), self._precision():
            read = partial(tree_logprobs, temperature=self.temperature, with_entropy=True)
            new = self.learners["actor"](batch, read)
        policy = policy_loss(
            new.logprobs, experience.logprobs[at], experience.advantages[at], mask, self.cliprange, num_tokens
        )
        loss, figures = policy.loss, {}
        if self.shaping.kl_in_loss:
            kl = kl_estimate(new.logprobs, experience.ref_logprobs[at], self.shaping.kl_estimator)
            figures["kl_loss"] = masked_mean(kl, mask, num_tokens)
            loss = loss + self.shaping.kl_controller.coef * figures["kl_loss"]
        loss = loss * (0.5 if self.rules.halves_with_ptx and self.ptx_trees else 1.0)
        return loss, figures | {
            "policy_loss": policy.loss,
            "entropy": masked_mean(new.entropy.detach(), mask, num_tokens),
            "clip_fraction": policy.clip_fraction,
            "approx_kl": policy.approx_kl,
            "ratio": policy.ratio,
        }

    def _value_loss(
        self, experience: Experience, batch: PackedBatch, at: tuple[Tensor, Tensor], num_tokens: Tensor
    ) -> ValueLoss:
        with self._precision():
            values = self.learners["critic"](batch, state_values)
        return value_loss(
            values,
            experience.values[at],
            experience.returns[at],
            experience.loss_mask[at],
            self.cliprange_value,
            num_tokens,
        )

    @torch.no_grad()
    def _approx_kl(self, experience: Experience, trees: Sequence[Segment]) -> float:
        """How far the policy has moved from the one that generated, in nats a token of a minibatch."""
        num_tokens, total = self._num_tokens(experience, trees), 0.0
        for batch, counts in own_batches(trees, self.token_budget, self.actor.device):
            _, figures = self._policy_loss(experience, batch, action_coordinates(batch), num_tokens)
            total += float(figures["approx_kl"]) * counts
        return sum_figures({"approx_kl": total}, self.actor.device)["approx_kl"]

    def _backward_ptx(self, trees: Sequence[Segment]) -> float:
        weight = self.ptx_coef * (0.5 if self.rules.halves_with_ptx else 1.0)
        num_tokens, loss = sum(tree.num_predictions for tree in trees), 0.0
        shares = own_batches(trees, self.token_budget, self.actor.device)
        for number, (batch, counts) in enumerate(shares, start=1):
            with self._precision():
                part = self.learners["actor"](batch, tree_cross_entropy) / num_tokens
            self.learners["actor"].backward(weight * counts * part, is_last=number == len(shares))
            loss += float(part.detach()) * counts
        return sum_figures({"loss": loss}, self.actor.device)["loss"]

    def _backward_ranked(self, trees: Sequence[Segment]) -> dict[str, float]:
        """The loss of the reward model on ranked answers, as it was trained (mean over pairs)."""
        objective, learner = RewardObjective(), self.learners["critic"]
        shares = own_batches(trees, self.token_budget, self.critic.device)
        own_pairs = sum(objective.num_items(batch) * counts for batch, counts in shares)
        num_pairs = max(1, sum_figures({"pairs": own_pairs}, self.critic.device)["pairs"])
        found = {"reward_loss": 0.0, "reward_accuracy": 0.0}
        for number, (batch, counts) in enumerate(shares, start=1):
            with self._precision():
                output = learner(batch, objective)
            loss = output.loss_sum / num_pairs
            learner.backward(self.reward_coef * counts * loss, is_last=number == len(shares))
            found["reward_loss"] += float(loss.detach()) * counts
            found["reward_accuracy"] += float(output.metrics["accuracy"][0]) / num_pairs * counts
        return sum_figures(found, self.actor.device)

    def _num_tokens(self, experience: Experience, trees: Sequence[Segment]) -> Tensor:
        rows = [branch.number for tree in trees for branch in tree.branches]
        return experience.loss_mask[rows].sum()

    # -- what a step looks at ----------------------------------------------------------------------------------------

    def _seed(self, purpose: str) -> int:
        return (self.seed * 1_000_003 + self.step) * 2 + (purpose == "minibatches")

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

"""Rehearses a step of PPO: responses are generated, four models score them, actor and critic are updated."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from keju.models.backbone import backbone_of
from keju.models.decoding import next_logits
from keju.models.sampling import Sampling, choose
from keju.planning.allocations import CACHE, FROZEN, PARAMETERS, Allocations, unmoved
from keju.planning.step import Rehearsal, Step, add_adapters, counts, fake_model, mark_optimizer, precision
from keju.rl.experience import RewardShaping
from keju.rl.four_models import FourModels
from keju.rl.ppo_trainer import PPOTrainer
from keju.rl.rewards import FixedKLController, RunningMoments
from keju.rl.rollout import Sampler


def rehearse_policy(step: Step) -> Rehearsal:
    """A rollout with its scores and one minibatch's update. Raises UserError as the trainer does."""
    seen, work = Allocations(), step.workload
    models = _four_models(step, seen)
    vocab_size = models.actor.config.get_text_config().vocab_size
    rollouts = work.rollouts(vocab_size)
    shaping = RewardShaping(kl_controller=FixedKLController(0.1), moments=RunningMoments())
    trainer = PPOTrainer(
        **models._asdict(),
        sampler=Sampler(SimpleNamespace(pad_token_id=0), work.num_responses, work.max_new_tokens),
        shaping=shaping,
        prompts=[list(rollout.prompt) for rollout in rollouts],
        max_steps=2,
        rollout_batch_size=work.rollout_batch_size,
        num_mini_batches=work.num_mini_batches,
        token_budget=work.token_budget,
        bf16=step.autocast,
    )
    for learner in trainer.learners.values():
        for group in learner.optimizer.param_groups:
            group["foreach"] = step.on_gpu  # torch's own choice on such a device
        learner.backward = _named(seen, "backward", learner.backward)
        learner.step = _named(seen, "optimizer", learner.step)
    for model in models:
        seen.mark([p for p in model.parameters() if not p.requires_grad], FROZEN)
    for model in (models.actor, models.critic):
        seen.mark([p for p in model.parameters() if p.requires_grad], PARAMETERS)
        seen.mark_gradients(model)
    count = -(-work.rollout_batch_size // work.num_mini_batches)
    for number in range(2):
        seen.moments.clear()
        with seen:
            if number:  # the optimizers have their state by then
                with seen.during("rollout"), precision(step), torch.no_grad():
                    _generate(models.actor, seen, step)
            with seen.during("scoring"), unmoved():
                experience = shaping.experience(trainer.score(rollouts))
            with seen.during("update"):
                trainer.update(experience, experience.trees[:count])
        mark_optimizer(seen, *(learner.optimizer for learner in trainer.learners.values()))
    frozen = {"reference": _size(models.reference), "reward model": _size(models.reward_model)}
    engines = counts(models.actor), counts(models.critic, beside=models.actor)
    # torch's AdamW takes the square roots of all second moments at once.
    return Rehearsal(seen.moments, engines, frozen, step_temporaries=1)


def _named(seen: Allocations, phase: str, function: Callable) -> Callable:
    def named(*args, **kwargs):
        with seen.during(phase):
            return function(*args, **kwargs)

    return named


def _size(model: nn.Module) -> int:
    """Bytes."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _four_models(step: Step, seen: Allocations) -> FourModels:
    actor, reference = (fake_model(step, seen, scalar=False) for _ in range(2))
    critic, judge = (fake_model(step, seen, scalar=True) for _ in range(2))
    if step.share_base:
        reference.requires_grad_(False)
        _share(actor, reference)
        _share(backbone_of(critic), backbone_of(reference))
        actor = add_adapters(step, actor, seen, scalar=False)
        critic = add_adapters(step, critic, seen, scalar=True)
    return FourModels(actor, reference, critic, judge)


def _share(module: nn.Module, base: nn.Module) -> None:
    """Puts the parameters of `base` in the place of the module's, which has the same."""
    for path, owner in base.named_modules():
        module.get_submodule(path)._parameters.update(owner._parameters)


def _generate(model: PreTrainedModel, seen: Allocations, step: Step) -> None:
    """The prompts' pass, the copies of its cache for all responses, and the last token's pass, with a full cache."""
    work = step.workload
    own = -(-work.rollout_batch_size // step.num_processes)
    num_prompts = min(own, max(1, work.generation_batch_size // work.num_responses))
    cache = DynamicCache(config=model.config.get_text_config())
    ids = torch.ones(num_prompts, work.max_prompt_length, dtype=torch.int64)
    logits, cache = next_logits(model, ids, torch.ones_like(ids), cache, new=ids.shape[1])
    seen.mark(_states(cache), CACHE)  # the first states of a layer are kept as they came
    cache.batch_repeat_interleave(work.num_responses)
    del logits
    rows, length = num_prompts * work.num_responses, work.max_prompt_length + work.max_new_tokens - 1
    for layer in cache.layers:
        for name in ("keys", "values"):
            states = getattr(layer, name, None)
            if states is not None:
                setattr(layer, name, states.new_empty(*states.shape[:-2], length - 1, states.shape[-1]))
    seen.mark(_states(cache), CACHE)
    ids = torch.ones(rows, length, dtype=torch.int64)
    logits, cache = next_logits(model, ids, torch.ones_like(ids), cache, new=1)
    choose(logits, torch.zeros(rows, dtype=torch.float64), Sampling())


def _states(cache: DynamicCache) -> list[torch.Tensor]:
    found = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]
    return [states for states in found if states is not None]

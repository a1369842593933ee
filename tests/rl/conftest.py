"""Four tiny random models and rollouts written by hand, for the tests of PPO."""

from functools import partial
from types import SimpleNamespace

import pytest
from tiny_models import BUILDERS, DROPOUT, build_scalar_model, opening

from keju.models.generation import Response
from keju.rl.rewards import FixedKLController
from keju.rl.rollout import Rollout, Sampler

EOS, PAD = 2, 3


@pytest.fixture
def ppo_models(request) -> SimpleNamespace:
    """actor, reference, critic, reward_model: all different, so that nothing can be mistaken for another.
    Their configurations have dropout.

    Llamas; tests that parametrise this fixture indirectly name another family of `tiny_models`.
    """
    family = getattr(request, "param", "llama")
    build = partial(BUILDERS[family], **DROPOUT.get(family, {}))
    return SimpleNamespace(
        actor=build(seed=0),
        reference=build(seed=1),
        critic=build_scalar_model(build(seed=2), seed=3),
        reward_model=build_scalar_model(build(seed=4), seed=5),
    )


@pytest.fixture
def rollouts(ppo_models) -> list[Rollout]:
    """Six responses of at most 6 tokens: ended early, cut off, nothing but the EOS; prompts of 1 to 5 tokens."""
    end = tuple(opening(ppo_models.actor))
    return [
        Rollout(
            (1, 8, 9, *end), (Response((7, 8, EOS), True), Response((9, 9, 9, 9, 9, 9), False), Response((EOS,), True))
        ),
        Rollout((14, *end), (Response((10, 11, 12, 13, EOS), True),)),
        Rollout((1, 20, 21, 22, 23, *end), (Response((7, EOS), True), Response((7, 8, 9, 10, 11, EOS), True))),
    ]


@pytest.fixture
def tokenizer() -> SimpleNamespace:
    """All that the trainer asks of a tokenizer."""
    return SimpleNamespace(eos_token_id=EOS, pad_token_id=PAD)


@pytest.fixture
def trainer_of(ppo_models, tokenizer):
    """Makes a PPOTrainer of the four models; keywords override settings of the trainer, sampler and shaping."""
    from keju.rl.experience import RewardShaping
    from keju.rl.ppo_trainer import PPOTrainer

    def make(sampler: dict | None = None, shaping: dict | None = None, **settings) -> PPOTrainer:
        sampling = {"tokenizer": tokenizer, "num_responses": 2, "max_new_tokens": 6, **(sampler or {})}
        shaping = {"kl_controller": FixedKLController(0.1), "whiten_advantages": False, **(shaping or {})}
        defaults = {
            "prompts": [[1, 5, 6], [4], [1, 20, 21, 22, 23]],
            "max_steps": 10,
            "rollout_batch_size": 3,
            "token_budget": 64,
            "lr_scheduler_type": "constant",
        }
        return PPOTrainer(
            **vars(ppo_models),
            sampler=Sampler(**sampling),
            shaping=RewardShaping(**shaping),
            **{**defaults, **settings},
        )

    return make

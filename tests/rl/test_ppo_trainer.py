"""A whole update over trees against a slow, obvious one over padded rows; and what must hold at every step."""

import copy

import pytest
import torch
from tiny_models import opening, row_inputs

from keju.rl.policy_evaluation import evaluate_policy
from keju.rl.prompt_order import step_indices
from keju.rl.rewards import AdaptiveKLController, RunningMoments
from keju.training.crash import NonFiniteLoss
from keju.trees.segment import Segment

PAD = 3


def padded(model, rollouts):
    """What a forward takes of one row a response, padded on the right; (start, length) of each response."""
    rows = [(rollout.prompt, response.ids) for rollout in rollouts for response in rollout.responses]
    inputs = row_inputs(model, [[*prompt, *ids] for prompt, ids in rows], pad=PAD)
    return inputs, [(len(prompt), len(ids)) for prompt, ids in rows]


def reference_losses(trainer, experience, temperature):
    """Policy and value loss by a double loop over rows and actions of padded forwards, with gradients."""
    inputs, spans = padded(trainer.actor, experience.rollouts)
    ids = inputs["input_ids"]
    logits = trainer.actor(**inputs).logits / temperature
    logprobs = torch.log_softmax(logits, dim=-1)
    critic = trainer.critic
    backbone = getattr(critic, critic.base_model_prefix)
    values = critic.score(backbone(**inputs).last_hidden_state)[..., 0]
    policy, value, count = 0.0, 0.0, 0
    for row, (start, length) in enumerate(spans):
        for t in range(length):
            old, advantage = experience.logprobs[row, t], experience.advantages[row, t]
            ratio = torch.exp(logprobs[row, start + t - 1, ids[row, start + t]] - old)
            policy += torch.max(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2))
            new, before, target = values[row, start + t - 1], experience.values[row, t], experience.returns[row, t]
            clipped = torch.min(torch.max(new, before - 0.2), before + 0.2)
            value += torch.max((new - target) ** 2, (clipped - target) ** 2) / 2
            count += 1
    return policy / count, value / count


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def move(model, seed, scale=0.02):
    """Changes the weights a little: what a first minibatch does, so that ratios leave 1 and clips bite."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("ppo_models", ["llama", "pangu", "glm", "chatglm", "baichuan2-7B"], indirect=True)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("token_budget", [12, 64])  # many packs a minibatch; one
def test_an_update_over_trees_is_an_update_over_padded_rows(
    ppo_models, trainer_of, rollouts, temperature, token_budget
):
    budget = token_budget + len(opening(ppo_models.actor))
    trainer = trainer_of(sampler={"temperature": temperature}, token_budget=budget)
    experience = trainer.shaping.experience(trainer.score(rollouts))
    move(trainer.actor, 0)
    move(trainer.critic, 1)

    metrics = trainer.backward(experience, experience.trees)
    actor_gradients, critic_gradients = gradients(trainer.actor), gradients(trainer.critic)
    assert 0 < metrics["clip_fraction"] < 1 and 0 < metrics["value_clip_fraction"] < 1
    for learner in trainer.learners.values():
        learner.optimizer.zero_grad()

    policy, value = reference_losses(trainer, experience, temperature)
    assert metrics["policy_loss"] == pytest.approx(policy.item(), abs=1e-5)
    assert metrics["value_loss"] == pytest.approx(value.item(), rel=1e-5)
    (policy + value).backward()
    for ours, model in ((actor_gradients, trainer.actor), (critic_gradients, trainer.critic)):
        expected = gradients(model)
        assert ours.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(ours[name], expected[name], atol=1e-5, rtol=1e-4)


def test_the_optimizer_step_clips_and_moves_both_models(trainer_of, rollouts):
    trainer = trainer_of(actor_learning_rate=1e-3, critic_learning_rate=2e-3, max_grad_norm=0.5)
    experience = trainer.shaping.experience(trainer.score(rollouts))
    slow = {"actor": copy.deepcopy(trainer.actor), "critic": copy.deepcopy(trainer.critic)}
    policy, value = reference_losses(trainer, experience, 1.0)
    (policy + value).backward()
    for (name, model), rate in zip(slow.items(), (1e-3, 2e-3), strict=True):
        for copied, parameter in zip(model.parameters(), getattr(trainer, name).parameters(), strict=True):
            copied.grad, parameter.grad = parameter.grad, None
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0).step()
    trainer.update(experience, experience.trees)
    for name, model in slow.items():
        for expected, parameter in zip(model.parameters(), getattr(trainer, name).parameters(), strict=True):
            # Adam's first step is rate * sign(gradient): where a gradient is zero but for rounding, its sign is noise.
            sure = expected.grad.abs() > 1e-6
            torch.testing.assert_close(parameter[sure], expected[sure], atol=1e-5, rtol=0)
            assert parameter.grad is None


def test_frozen_models_stay_as_they_are(trainer_of):
    trainer = trainer_of(actor_learning_rate=1e-2, critic_learning_rate=1e-2)
    before = {name: copy.deepcopy(getattr(trainer, name).state_dict()) for name in ("reference", "reward_model")}
    trainer.train_step()
    for name, state in before.items():
        assert all(torch.equal(state[key], tensor) for key, tensor in getattr(trainer, name).state_dict().items())


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_at_the_first_minibatch_the_ratio_is_one(trainer_of, temperature):
    trainer = trainer_of(sampler={"temperature": temperature}, actor_learning_rate=1e-3)
    _, metrics = trainer.train_step()
    assert metrics["ratio"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["approx_kl"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["clip_fraction"] == 0.0


def test_mixed_precision_rounds_both_sides_of_the_ratio_alike(trainer_of):
    trainer = trainer_of(bf16=True, actor_learning_rate=1e-2)
    experience, metrics = trainer.train_step()
    assert metrics["ratio"] == pytest.approx(1.0, abs=1e-3)
    assert metrics["approx_kl"] < 1e-4
    assert experience.logprobs.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in trainer.actor.parameters())


def test_dropout_never_enters(trainer_of, ppo_models):
    for model in (ppo_models.actor, ppo_models.critic):
        for module in model.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.5
        model.train()
    _, metrics = trainer_of().train_step()
    assert metrics["ratio"] == pytest.approx(1.0, abs=1e-5)


def test_later_minibatches_and_epochs_leave_one(trainer_of):
    trainer = trainer_of(ppo_epochs=2, num_mini_batches=3, actor_learning_rate=1e-2)
    _, metrics = trainer.train_step()
    assert metrics["approx_kl"] > 1e-4
    assert trainer.learners["actor"].scheduler.last_epoch == 6


def test_minibatches_add_up_whatever_the_packing(trainer_of, rollouts):
    """The gradient of a minibatch does not depend on how its trees are packed."""
    found = []
    for token_budget in (12, 16, 64):
        trainer = trainer_of(token_budget=token_budget)
        experience = trainer.shaping.experience(trainer.score(rollouts))
        trainer.backward(experience, experience.trees)
        found.append(gradients(trainer.actor))
        for learner in trainer.learners.values():
            learner.optimizer.zero_grad()
    for other in found[1:]:
        for name, gradient in found[0].items():
            torch.testing.assert_close(gradient, other[name], atol=1e-5, rtol=1e-4)


def test_ptx_is_added_to_the_same_step(trainer_of, rollouts):
    ptx = [Segment([1, 5, 6, 7], trained=[False, False, True, True]), Segment([8, 9, 10], trained=True)]
    trainer = trainer_of(ptx_trees=ptx, ptx_coef=3.0)
    experience = trainer.shaping.experience(trainer.score(rollouts))
    trainer.backward(experience, experience.trees)
    loss = trainer._backward_ptx(ptx)
    both = gradients(trainer.actor)
    trainer.actor.zero_grad()

    policy, _ = reference_losses(trainer, experience, 1.0)
    logprobs = 0.0
    for tree, targets in zip(ptx, ([2, 3], [1, 2]), strict=True):
        rows = torch.log_softmax(trainer.actor(torch.tensor([tree.tokens])).logits[0], dim=-1)
        logprobs += sum(rows[index - 1, tree.tokens[index]] for index in targets)
    assert loss == pytest.approx(-logprobs.item() / 4, rel=1e-5)
    (policy - 3.0 * logprobs / 4).backward()
    for name, gradient in gradients(trainer.actor).items():
        torch.testing.assert_close(both[name], gradient, atol=1e-5, rtol=1e-4)
    assert trainer.train_step()[1]["ptx_loss"] > 0


def test_the_moving_average_follows(trainer_of):
    trainer = trainer_of(ema_decay=0.9, actor_learning_rate=1e-2)
    start = copy.deepcopy(trainer.actor.state_dict())
    trainer.train_step()
    for name, average in trainer.average.weights.items():
        expected = 0.9 * start[name] + 0.1 * trainer.actor.state_dict()[name]
        torch.testing.assert_close(average, expected, atol=1e-6, rtol=1e-5)


def test_a_step_depends_on_weights_seed_and_number_only(trainer_of):
    first, again, other = trainer_of(), trainer_of(), trainer_of(seed=1)
    rollouts = [trainer.train_step()[0].rollouts for trainer in (first, again, other)]
    assert rollouts[0] == rollouts[1] != rollouts[2]


def test_every_prompt_is_seen_once_an_epoch():
    seen = [index for step in range(1, 8) for index in step_indices(7, 3, step, seed=0)]
    for epoch in range(3):
        assert sorted(seen[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert seen[:7] != seen[7:14]


def test_a_broken_loss_stops_before_the_weights_take_it_in(trainer_of, rollouts):
    trainer = trainer_of()
    experience = trainer.shaping.experience(trainer.score(rollouts))
    experience.advantages[0, 0] = torch.nan
    before = copy.deepcopy(trainer.actor.state_dict())
    with pytest.raises(NonFiniteLoss, match="policy_loss"):
        trainer.update(experience, experience.trees)
    assert all(torch.equal(before[name], tensor) for name, tensor in trainer.actor.state_dict().items())


def test_the_kl_coefficient_follows_its_target(trainer_of):
    trainer = trainer_of(shaping={"kl_controller": AdaptiveKLController(0.1, target=1e-3, horizon=100)})
    _, metrics = trainer.train_step()
    assert metrics["kl_coef"] == 0.1
    assert trainer.shaping.kl_controller.coef == pytest.approx(0.1 * (1 + 0.2 * 6 / 100))


def test_wrong_settings_name_the_flag(trainer_of):
    with pytest.raises(ValueError, match="^num_mini_batches: .*got 4"):
        trainer_of(num_mini_batches=4)
    with pytest.raises(ValueError, match="^ppo_mode: trl"):
        trainer_of(ppo_mode="trl")
    with pytest.raises(ValueError, match="^train_filename: "):
        trainer_of(prompts=[])


def test_evaluation_learns_nothing_and_repeats(trainer_of):
    trainer = trainer_of()
    before = copy.deepcopy(trainer.actor.state_dict())
    first, again = (evaluate_policy(trainer, [[1, 5], [4]], seed=0)[1] for _ in range(2))
    assert first == again
    assert trainer.step == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in trainer.actor.state_dict().items())


def test_a_tiny_policy_learns_a_synthetic_reward(trainer_of, monkeypatch):
    """Reward = share of ids below 20 in the response: a few steps on a random policy must raise it at bounded KL."""
    trainer = trainer_of(
        sampler={"num_responses": 8, "max_new_tokens": 6},
        shaping={"whiten_advantages": True, "moments": RunningMoments()},
        actor_learning_rate=3e-3,
        critic_learning_rate=3e-3,
        rollout_batch_size=3,
        token_budget=512,
        ppo_epochs=2,
    )
    trainer.reference.load_state_dict(trainer.actor.state_dict())
    score = trainer.score

    def share_of_low_ids(rollouts):
        scored = score(rollouts)
        responses = [response for rollout in scored.rollouts for response in rollout.responses]
        shares = [sum(token < 20 for token in response.ids) / len(response.ids) for response in responses]
        scored.scores = torch.tensor(shares)
        return scored

    monkeypatch.setattr(trainer, "score", share_of_low_ids)
    _, before = evaluate_policy(trainer, list(trainer.prompts) * 4, seed=5)
    for _ in range(12):
        _, metrics = trainer.train_step()
    _, after = evaluate_policy(trainer, list(trainer.prompts) * 4, seed=5)
    assert before["kl"] == 0.0
    assert after["reward"] > before["reward"] + 0.2
    assert 0 < after["kl"] < 20

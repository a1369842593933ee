"""What can be added to an update: KL as a loss, early stop, a critic that warms up, joint optimisation, a judge."""

import copy

import pytest
import torch
from tiny_models import build_llama, build_scalar_model
from transformers.modeling_layers import GradientCheckpointingLayer

from keju.rl.joint import add_value_output
from keju.rl.rewards import FixedKLController
from keju.rl.scoring import Reader
from keju.trees.segment import Segment


def weights(model):
    return copy.deepcopy(model.state_dict())


def changed(model, before) -> bool:
    return any(not torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def actor_gradients(trainer, rollouts):
    experience = trainer.shaping.experience(trainer.score(rollouts))
    metrics = trainer.backward(experience, experience.trees)
    found = {name: parameter.grad.clone() for name, parameter in trainer.actor.named_parameters()}
    for learner in trainer.learners.values():
        learner.optimizer.zero_grad()
    return experience, metrics, found


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_kl_as_a_loss(trainer_of, rollouts, estimator):
    """The gradient gains coef * d/dw mean KL, by a double loop over plain forwards; the reward loses its KL."""
    settings = {"kl_controller": FixedKLController(0.3), "kl_estimator": estimator}
    trainer = trainer_of(shaping={**settings, "kl_in_loss": True})
    experience, metrics, with_kl = actor_gradients(trainer, rollouts)
    for row in range(len(experience.scores)):
        last = int(experience.lengths[row]) - 1
        assert experience.rewards[row, :last].abs().sum() == 0  # no KL was paid on the way
        assert experience.rewards[row, last] == experience.terminal_rewards[row]
    without = trainer_of(shaping={**settings, "kl_in_loss": True, "kl_controller": FixedKLController(0.0)})
    _, _, without_kl = actor_gradients(without, rollouts)

    total, count = 0.0, 0
    for rollout in experience.rollouts:
        for response in rollout.responses:
            ids = torch.tensor([[*rollout.prompt, *response.ids]])
            new = torch.log_softmax(trainer.actor(ids).logits[0, :-1], -1).gather(1, ids[0, 1:, None])[:, 0]
            with torch.no_grad():
                old = torch.log_softmax(trainer.reference(ids).logits[0, :-1], -1).gather(1, ids[0, 1:, None])[:, 0]
            for t in range(len(rollout.prompt) - 1, ids.shape[1] - 1):
                d = new[t] - old[t]
                total = total + (d**2 / 2 if estimator == "k2" else torch.exp(-d) - 1 + d)
                count += 1
    assert metrics["kl_loss"] == pytest.approx((total / count).item(), rel=1e-4)
    (0.3 * total / count).backward()
    for name, parameter in trainer.actor.named_parameters():
        torch.testing.assert_close(with_kl[name] - without_kl[name], parameter.grad, atol=1e-5, rtol=1e-3)


def test_k1_as_a_loss_is_refused(trainer_of):
    with pytest.raises(ValueError, match="kl_in_loss: .*k2 or k3"):
        trainer_of(shaping={"kl_in_loss": True})


def test_the_gradient_of_k1_is_zero_in_expectation_and_that_of_k2_is_the_kl():
    """Why k1 is refused: over a whole distribution, weighted by its own probabilities."""
    logits = torch.tensor([0.3, -0.2, 1.1], dtype=torch.float64, requires_grad=True)
    reference = torch.log_softmax(torch.tensor([0.0, 0.5, 0.2], dtype=torch.float64), -1)
    logprobs = torch.log_softmax(logits, -1)
    probability, d = logprobs.exp().detach(), logprobs - reference
    (k1,) = torch.autograd.grad((probability * d).sum(), logits, retain_graph=True)
    (k2,) = torch.autograd.grad((probability * d**2 / 2).sum(), logits, retain_graph=True)
    (exact,) = torch.autograd.grad((logprobs.exp() * d).sum(), logits)
    torch.testing.assert_close(k1, torch.zeros_like(k1), atol=1e-12, rtol=0)
    torch.testing.assert_close(k2, exact)


def test_an_update_that_has_moved_too_far_ends(trainer_of):
    settings = {"ppo_epochs": 3, "num_mini_batches": 3, "actor_learning_rate": 3e-2}
    free, held = trainer_of(**settings), trainer_of(**settings, early_stop_kl=1e-3)
    held.actor.load_state_dict(weights(free.actor))
    _, metrics = held.train_step()
    assert metrics["num_updates"] == 1  # the first has ratio 1; the second is already too far away
    assert held.learners["actor"].scheduler.last_epoch == 9  # the schedule ends with the run all the same
    _, metrics = free.train_step()
    assert metrics["num_updates"] == 9 and metrics["approx_kl"] > 1e-3
    generous = trainer_of(**settings, early_stop_kl=1e9)
    assert generous.train_step()[1]["num_updates"] == 9


def test_an_update_that_is_left_out_changes_nothing(trainer_of, rollouts):
    trainer = trainer_of(critic_learning_rate=1e-2)
    experience = trainer.shaping.experience(trainer.score(rollouts))
    experience.logprobs += 0.3  # as if the policy had been another one
    before = weights(trainer.actor), weights(trainer.critic)
    assert trainer.update(experience, experience.trees, stop_above=1e-3) is None
    assert not changed(trainer.actor, before[0]) and not changed(trainer.critic, before[1])
    assert all(parameter.grad is None for parameter in trainer.actor.parameters())


def test_the_critic_warms_up_alone(trainer_of):
    ptx = [Segment([1, 5, 6, 7], trained=True)]
    trainer = trainer_of(value_warmup_steps=1, actor_learning_rate=1e-2, critic_learning_rate=1e-2, ptx_trees=ptx)
    actor, critic = weights(trainer.actor), weights(trainer.critic)
    _, metrics = trainer.train_step()
    assert not changed(trainer.actor, actor) and changed(trainer.critic, critic)
    assert metrics["ratio"] == pytest.approx(1.0, abs=1e-5) and "ptx_loss" not in metrics
    trainer.train_step()
    assert changed(trainer.actor, actor)


@pytest.fixture
def joint_trainer(trainer_of, ppo_models):
    """The reward model is the critic, too; its rewards learn from two ranked prompts."""
    add_value_output(ppo_models.reward_model)
    ppo_models.critic = ppo_models.reward_model
    ranked = [
        Segment(
            [1, 5, 6],
            branches=[
                Segment([7, 2], trained=True, values={"score": 1.0}),
                Segment([8, 9, 2], trained=True, values={"score": 0.0}),
            ],
        ),
        Segment([1, 9], branches=[Segment([token, 2], trained=True, values={"score": token}) for token in (4, 5, 6)]),
    ]
    return trainer_of(ranked_trees=ranked, reward_coef=0.5, ptx_batch_size=2)


def test_joint_optimisation_adds_both_losses(joint_trainer, rollouts):
    """Gradients of the shared backbone: value loss of output 1 on rollouts + coef * pair loss of output 0."""
    trainer = joint_trainer
    experience = trainer.shaping.experience(trainer.score(rollouts))
    trainer.backward(experience, experience.trees)
    metrics = trainer._backward_ranked(trainer.ranked_trees)
    found = {name: parameter.grad.clone() for name, parameter in trainer.critic.named_parameters()}
    trainer.critic.zero_grad()

    model = trainer.reward_model

    def outputs(ids):
        return model.score(model.model(torch.tensor([ids])).last_hidden_state)[0]

    value, count, row = 0.0, 0, 0
    for rollout in experience.rollouts:
        for response in rollout.responses:
            states = outputs([*rollout.prompt, *response.ids])[len(rollout.prompt) - 1 : -1, 1]
            target = experience.returns[row, : len(states)]
            old = experience.values[row, : len(states)]
            torch.testing.assert_close(states, old, atol=1e-5, rtol=1e-5)
            value = value + ((states - target) ** 2).sum() / 2  # nothing is clipped at the start
            count, row = count + len(states), row + 1
    pairs = []
    for tree in trainer.ranked_trees:
        scored = [(b.values["score"], outputs([*tree.tokens, *b.tokens])[-1, 0]) for b in tree.branches]
        pairs += [-torch.log(torch.sigmoid(a - b)) for x, a in scored for y, b in scored if x > y]
    assert len(pairs) == 4
    loss = sum(pairs) / 4
    assert metrics["reward_loss"] == pytest.approx(loss.item(), rel=1e-5)
    (value / count + 0.5 * loss).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, atol=1e-5, rtol=1e-3)


def test_joint_optimisation_moves_the_reward(joint_trainer):
    before = weights(joint_trainer.reward_model)
    experience, metrics = joint_trainer.train_step()
    assert changed(joint_trainer.reward_model, before)
    assert metrics["reward_loss"] > 0 and 0 <= metrics["reward_accuracy"] <= 1
    assert torch.isfinite(experience.scores).all()


def test_ranked_answers_without_joint_optimisation_are_a_mistake(trainer_of):
    with pytest.raises(ValueError, match="joint optimisation"):
        trainer_of(ranked_trees=[Segment([1, 5])])


def test_a_judge_watches_and_trains_nobody(trainer_of, rollouts):
    judge = build_scalar_model(build_llama(seed=8), seed=9)
    alone, watched = trainer_of(), trainer_of(judge=Reader(judge))
    before = weights(judge)
    experience, metrics = watched.train_step()
    assert not changed(judge, before)
    assert metrics["judge"] == pytest.approx(float(experience.judge_scores.mean()))
    assert "judge" not in alone.train_step()[1]
    # its scores are its own, read at the same tokens
    watched.reward_model.load_state_dict(judge.state_dict())
    scored = watched.score(rollouts)
    assert torch.equal(scored.scores, scored.judge_scores)


def test_models_elsewhere_come_over_for_their_pass(trainer_of, rollouts, monkeypatch):
    """Offloading: reference and reward model are moved to the actor's device and back, around their own passes."""
    trainer = trainer_of()
    moves = []
    for name in ("reference", "reward_model"):
        model = getattr(trainer, name)
        monkeypatch.setattr(type(model), "device", property(lambda self: torch.device("cpu")))
        monkeypatch.setattr(model, "to", lambda device, name=name: moves.append((name, str(device))))
    trainer.score(rollouts)
    assert moves == [(name, "cpu") for name in ("reference", "reference", "reward_model", "reward_model")]


@pytest.mark.parametrize("ppo_models", ["llama", "pangu"], indirect=True)
def test_recomputed_activations_change_nothing(ppo_models, trainer_of):
    """Weights after a step are equal to the last bit, layers are computed again, and generation still has its cache."""
    start = copy.deepcopy(ppo_models)
    weights_of, passes = [], []
    for recompute in (False, True):
        for name, model in vars(start).items():
            getattr(ppo_models, name).load_state_dict(model.state_dict())
        trainer = trainer_of(activation_checkpointing=recompute, actor_learning_rate=1e-2)
        layer = next(m for m in trainer.actor.modules() if isinstance(m, GradientCheckpointingLayer))
        count = []
        hook = next(layer.children()).register_forward_hook(lambda *_, count=count: count.append(1))
        trainer.train_step()
        hook.remove()
        assert not layer.training
        passes.append(len(count))
        weights_of.append(weights(trainer.actor))
    assert passes[1] > passes[0]
    assert all(torch.equal(tensor, weights_of[1][name]) for name, tensor in weights_of[0].items())

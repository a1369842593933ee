"""Scores, log-probs and values from trees, against one plain forward a response."""

import pytest
import torch
from tiny_models import opening, row_inputs

from keju.models.generation import Response
from keju.rl.advantages import gae
from keju.rl.experience import RewardShaping
from keju.rl.response_trees import branch_trees
from keju.rl.rewards import FixedKLController, RunningMoments
from keju.rl.rollout import Rollout
from keju.rl.scoring import Reader, score_rollouts

PAD = 3


def score(models, rollouts, **changes):
    models = {**vars(models)}
    reward = Reader(models.pop("reward_model"))
    settings = {"reward": reward, "mode": "keju", "pad_id": PAD, "temperature": 1.0, "token_budget": 64, **changes}
    return score_rollouts(rollouts, **models, **settings)


@torch.no_grad()
def one_by_one(models, rollouts, temperature=1.0):
    """(logprobs, ref_logprobs, values, score) of each response, from a plain forward of prompt + response."""
    for rollout in rollouts:
        for response in rollout.responses:
            inputs = row_inputs(models.actor, [[*rollout.prompt, *response.ids]])
            ids = inputs["input_ids"]
            start = len(rollout.prompt) - 1
            parts = []
            for model in (models.actor, models.reference):
                logits = model(**inputs).logits[0, :-1] / temperature
                logprobs = torch.log_softmax(logits, dim=-1).gather(1, ids[0, 1:, None])[:, 0]
                parts.append(logprobs[start:])
            values, scores = (
                model.score(getattr(model, model.base_model_prefix)(**inputs).last_hidden_state)[0, :, 0]
                for model in (models.critic, models.reward_model)
            )
            yield *parts, values[start:-1], scores[-1]


@pytest.mark.parametrize("ppo_models", ["llama", "pangu", "glm", "chatglm", "baichuan-13B"], indirect=True)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("token_budget", [11, 64])  # one or two responses a tree; everything in one pack
def test_trees_give_what_one_forward_a_response_gives(ppo_models, rollouts, temperature, token_budget):
    budget = token_budget + len(opening(ppo_models.actor))
    scored = score(ppo_models, rollouts, temperature=temperature, token_budget=budget)
    assert (len(scored.trees) > 3) == (token_budget == 11)
    expected = list(one_by_one(ppo_models, rollouts, temperature))
    assert scored.mask.sum(dim=1).tolist() == [3, 6, 1, 5, 2, 6] == scored.lengths.tolist()
    for row, (logprobs, ref_logprobs, values, score_) in enumerate(expected):
        mask = scored.mask[row]
        torch.testing.assert_close(scored.logprobs[row, mask], logprobs, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(scored.ref_logprobs[row, mask], ref_logprobs, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(scored.values[row, mask], values, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(scored.scores[row], score_, atol=1e-5, rtol=1e-5)
    assert torch.equal(scored.mask, scored.loss_mask)
    assert scored.finished.tolist() == [True, False, True, True, True, True]


def test_a_pad_that_was_generated_is_an_action_like_any_other(ppo_models):
    """Masks come from lengths: the pad's id inside a response does not end it."""
    rollouts = [Rollout((1, 5), (Response((7, PAD, 8, 9), False), Response((7, 2), True)))]
    scored = score(ppo_models, rollouts)
    assert scored.mask.sum(dim=1).tolist() == [4, 2]
    *_, score_ = next(one_by_one(ppo_models, rollouts))
    torch.testing.assert_close(scored.scores[0], score_, atol=1e-5, rtol=1e-5)


def test_what_is_padding_does_not_depend_on_the_pad_id(ppo_models, rollouts):
    expected = score(ppo_models, rollouts)
    for pad_id in (0, 2, 9):  # pad = eos, and a pad that stands in a response
        scored = score(ppo_models, rollouts, pad_id=pad_id)
        assert torch.equal(scored.logprobs, expected.logprobs) and torch.equal(scored.scores, expected.scores)


def test_the_reward_stands_on_the_eos_or_on_the_last_token_of_a_truncated_response(ppo_models, rollouts):
    scored = score(ppo_models, rollouts)
    experience = RewardShaping(FixedKLController(0.0), clip_reward=None, whiten_advantages=False).experience(scored)
    for row, length in enumerate([3, 6, 1, 5, 2, 6]):
        expected = torch.zeros(6)
        expected[length - 1] = scored.scores[row]
        torch.testing.assert_close(experience.rewards[row], expected)


def test_order_of_normalising_clipping_and_penalties(ppo_models, rollouts):
    scored = score(ppo_models, rollouts)
    scored.scores = torch.tensor([100.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    shaping = RewardShaping(
        FixedKLController(0.1), moments=RunningMoments(), clip_reward=1.0, missing_eos_penalty=2.0, length_penalty=0.01
    )
    experience = shaping.experience(scored)
    normal = (scored.scores - scored.scores.mean()) / scored.scores.std()
    expected = normal.clamp(-1, 1) - 0.01 * torch.tensor([3.0, 6, 1, 5, 2, 6])
    expected[1] -= 2.0  # the one that was cut off
    torch.testing.assert_close(experience.terminal_rewards, expected)


def test_returns_are_taken_before_whitening(ppo_models, rollouts):
    scored = score(ppo_models, rollouts)
    plain = RewardShaping(FixedKLController(0.1), whiten_advantages=False).experience(scored)
    white = RewardShaping(FixedKLController(0.1), whiten_advantages=True).experience(scored)
    assert torch.equal(plain.returns, white.returns)
    assert torch.equal(plain.advantages, gae(plain.rewards, scored.values, scored.mask).advantages)
    assert white.advantages[scored.mask].mean().abs() < 1e-6
    assert white.advantages[scored.mask].std().item() == pytest.approx(1.0, abs=1e-5)


def test_metrics(ppo_models, rollouts):
    ppo_models.reference = ppo_models.actor
    metrics = RewardShaping(FixedKLController(0.1)).experience(score(ppo_models, rollouts)).metrics()
    assert metrics["kl"] == 0.0
    assert metrics["response_length"] == pytest.approx(23 / 6)
    assert metrics["fraction_finished"] == pytest.approx(5 / 6)


def test_a_tree_that_does_not_fit_is_split_and_a_response_that_does_not_is_an_error():
    trees = list(branch_trees([1, 2], {0: [3, 4], 5: [6, 7], 2: [8]}, token_budget=6))
    assert [[branch.number for branch in tree.branches] for tree in trees] == [[0, 5], [2]]
    assert all(tree.num_tokens <= 6 for tree in trees)
    with pytest.raises(ValueError, match="token_budget: 3 .* --max_prompt_length or --max_new_tokens"):
        list(branch_trees([1, 2], {0: [3, 4]}, token_budget=3))


def test_an_unknown_mode_lists_the_right_ones(ppo_models, rollouts):
    with pytest.raises(ValueError, match="ppo_mode: trl: choose from keju, deepspeed_chat"):
        score(ppo_models, rollouts, mode="trl")

"""Every formula of PPO against numbers worked out by hand and against slow, obvious double loops."""

import math

import numpy as np
import pytest
import torch

from keju.rl.advantages import explained_variance, gae, masked_mean, whiten
from keju.rl.losses import policy_loss, value_loss
from keju.rl.rewards import (
    AdaptiveKLController,
    FixedKLController,
    RunningMoments,
    kl_estimate,
    shape_scores,
    token_rewards,
)

LENGTHS = [5, 1, 3, 7]


def rows(seed: int, scale: float = 1.0) -> torch.Tensor:
    """[4, 7] of random numbers."""
    return scale * torch.randn(len(LENGTHS), max(LENGTHS), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def mask() -> torch.Tensor:
    return torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]


def test_kl_estimators_by_hand():
    logprobs, ref_logprobs = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0])
    assert kl_estimate(logprobs, ref_logprobs, "k1").tolist() == [0.5, -1.0]
    assert kl_estimate(logprobs, ref_logprobs, "k2").tolist() == [0.125, 0.5]
    expected = torch.tensor([math.exp(-0.5) - 1 + 0.5, math.e - 1 - 1])
    torch.testing.assert_close(kl_estimate(logprobs, ref_logprobs, "k3"), expected)
    with pytest.raises(ValueError, match="k1, k2, k3"):
        kl_estimate(logprobs, ref_logprobs, "abs")


def test_kl_estimators_agree_on_the_true_kl():
    """k1 and k3 are unbiased: weighted by the policy's own probabilities they give the exact KL."""
    policy, reference = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.5, 0.25, 0.25])
    exact = (policy * (policy / reference).log()).sum()
    for estimator in ("k1", "k3"):
        torch.testing.assert_close((policy * kl_estimate(policy.log(), reference.log(), estimator)).sum(), exact)


def test_log_ratios_are_taken_in_float32():
    logprobs = torch.tensor([-0.50390625], dtype=torch.bfloat16)
    ref_logprobs = torch.tensor([-0.5029296875 - 2**-12], dtype=torch.float32)
    kl = kl_estimate(logprobs, ref_logprobs)
    assert kl.dtype == torch.float32
    assert kl.item() == -0.50390625 - ref_logprobs.item()


def test_scores_are_clipped_before_the_penalties():
    scores = torch.tensor([9.0, -9.0, 1.0, 1.0])
    finished = torch.tensor([True, True, False, True])
    lengths = torch.tensor([1, 1, 4, 10])
    shaped = shape_scores(scores, finished, lengths, clip=5.0, missing_eos_penalty=2.0, length_penalty=0.1)
    torch.testing.assert_close(shaped, torch.tensor([4.9, -5.1, -1.4, 0.0]))
    assert shape_scores(scores, finished, lengths).tolist() == scores.tolist()


def test_reward_lands_on_the_last_action_and_nowhere_else(mask):
    kl, scores = rows(0), torch.tensor([1.0, 2.0, 3.0, 4.0])
    rewards = token_rewards(scores, torch.where(mask, kl, torch.nan), mask, kl_coef=0.1)
    for b, length in enumerate(LENGTHS):
        for t in range(mask.shape[1]):
            expected = -0.1 * kl[b, t].item() if t < length else 0.0
            if t == length - 1:
                expected += scores[b].item()
            assert rewards[b, t].item() == pytest.approx(expected, abs=1e-6)


def test_masks_of_responses_have_no_holes_and_no_empty_rows(mask):
    hole = mask.clone()
    hole[0, 2] = False
    empty = mask.clone()
    empty[1] = False
    for broken in (hole, empty):
        with pytest.raises(ValueError, match="hole|without any action"):
            token_rewards(torch.ones(4), rows(0), broken, 0.1)
        with pytest.raises(ValueError, match="hole|without any action"):
            gae(rows(0), rows(1), broken)


def test_gae_by_hand():
    # gamma 0.5, lambda 0.5: delta = (0 + .5*2 - 1, 1 + 0 - 2) = (0, -1); A_1 = -1, A_0 = 0 + .25 * -1.
    advantages, returns = gae(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 2.0]]), torch.ones(1, 2).bool(), 0.5, 0.5)
    assert advantages.tolist() == [[-0.25, -1.0]]
    assert returns.tolist() == [[0.75, 1.0]]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_gae_is_the_double_sum_of_the_paper(mask, gamma, lam):
    rewards, values = rows(1), rows(2)
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    expected = np.zeros(mask.shape)
    for b, length in enumerate(LENGTHS):
        r, v = rewards[b, :length].double().numpy(), np.append(values[b, :length].double().numpy(), 0.0)
        for t in range(length):
            for k in range(t, length):
                expected[b, t] += (gamma * lam) ** (k - t) * (r[k] + gamma * v[k + 1] - v[k])
    torch.testing.assert_close(advantages.double(), torch.tensor(expected), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(returns, torch.where(mask, advantages + values, 0.0))


def test_nothing_after_the_end_enters_gae(mask):
    rewards, values = rows(1), rows(2)
    clean = gae(rewards, values, mask)
    for poison in (1e6, torch.nan):
        dirty = gae(torch.where(mask, rewards, poison), torch.where(mask, values, poison), mask)
        assert torch.equal(clean.advantages, dirty.advantages)
        assert torch.equal(clean.returns, dirty.returns)
    # One row alone, not padded at all, gives the same numbers.
    alone = gae(rewards[2:3, :3], values[2:3, :3], mask[2:3, :3])
    assert torch.equal(clean.advantages[2:3, :3], alone.advantages)


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening_sees_the_mask_only(mask, shift_mean):
    x = rows(3, scale=4.0) + 7
    whitened = whiten(torch.where(mask, x, torch.nan), mask, shift_mean)
    kept = x[mask].double().numpy()
    expected = (kept - kept.mean()) / np.sqrt(kept.var(ddof=1) + 1e-8) + (0 if shift_mean else kept.mean())
    torch.testing.assert_close(whitened[mask].double(), torch.tensor(expected), atol=1e-4, rtol=1e-5)
    assert (whitened[~mask] == 0).all()


def test_whitening_of_equal_numbers_is_zero(mask):
    assert whiten(torch.full(mask.shape, 3.0), mask).abs().max() == 0
    assert whiten(torch.ones(1, 1), torch.ones(1, 1).bool()).item() == 0


def test_parts_of_a_minibatch_add_up_to_its_mean(mask):
    x = rows(4)
    total = mask.sum()
    parts = sum(masked_mean(x[b], mask[b], total) for b in range(4))
    torch.testing.assert_close(parts, masked_mean(x, mask))
    torch.testing.assert_close(masked_mean(x, mask), x[mask].mean())


def test_policy_loss_by_hand():
    # Ratios 1.5 and 0.5 with either sign of the advantage; range 0.2.
    old = torch.zeros(4)
    new = torch.tensor([1.5, 1.5, 0.5, 0.5]).log().requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    loss, clip_fraction, approx_kl, ratio = policy_loss(new, old, advantages, torch.ones(4).bool(), 0.2)
    # max(-1.5, -1.2) = -1.2 held back; max(1.5, 1.2) = 1.5; max(-.5, -.8) = -.5; max(.5, .8) = .8 held back
    assert loss.item() == pytest.approx((-1.2 + 1.5 - 0.5 + 0.8) / 4)
    assert clip_fraction.item() == 0.5
    assert ratio.item() == pytest.approx(1.0)
    assert approx_kl.item() == pytest.approx(-(math.log(1.5) + math.log(0.5)) / 2)
    loss.backward()
    torch.testing.assert_close(new.grad, torch.tensor([0.0, 1.5, -0.5, 0.0]) / 4)


def test_policy_loss_is_the_double_loop(mask):
    new, old, advantages = rows(5, 0.3), rows(6, 0.3), rows(7)
    total = 0.0
    for b, length in enumerate(LENGTHS):
        for t in range(length):
            ratio = math.exp(new[b, t] - old[b, t])
            total += max(-advantages[b, t] * ratio, -advantages[b, t] * min(max(ratio, 0.8), 1.2))
    garbage = torch.where(mask, new, 1e4)
    loss = policy_loss(garbage, old, torch.where(mask, advantages, 0.0), mask).loss
    assert loss.item() == pytest.approx(float(total) / sum(LENGTHS), abs=1e-5)


def test_policy_loss_survives_a_huge_ratio():
    new = torch.tensor([100.0, -1.0], requires_grad=True)
    old = torch.tensor([-200.0, -1.0])
    loss = policy_loss(new, old, torch.tensor([1.0, 1.0]), torch.ones(2).bool()).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert new.grad.tolist() == [0.0, -0.5]


def test_value_loss_by_hand():
    # V = 1, V_old = 0, range .2: clipped to .2. Return 2: (1-2)^2 = 1 < (.2-2)^2 = 3.24. Return .5: .25 > .09.
    loss, clip_fraction = value_loss(
        torch.tensor([1.0, 1.0]), torch.zeros(2), torch.tensor([2.0, 0.5]), torch.ones(2).bool(), 0.2
    )
    assert loss.item() == pytest.approx((3.24 + 0.25) / 4)
    assert clip_fraction.item() == 0.5


def test_value_loss_is_the_double_loop(mask):
    values, old, returns = rows(8), rows(9), rows(10)
    total = 0.0
    for b, length in enumerate(LENGTHS):
        for t in range(length):
            clipped = min(max(values[b, t], old[b, t] - 0.2), old[b, t] + 0.2)
            total += max((values[b, t] - returns[b, t]) ** 2, (clipped - returns[b, t]) ** 2) / 2
    loss = value_loss(torch.where(mask, values, 1e4), old, returns, mask).loss
    assert loss.item() == pytest.approx(float(total) / sum(LENGTHS), rel=1e-5)


def test_explained_variance(mask):
    returns = rows(11)
    assert explained_variance(returns + 3, returns, mask) == pytest.approx(1.0)
    assert explained_variance(torch.zeros_like(returns), returns, mask) == pytest.approx(0.0, abs=1e-6)
    assert explained_variance(-returns, returns, mask) == pytest.approx(-3.0, abs=1e-5)
    assert math.isnan(explained_variance(returns, torch.ones_like(returns), mask))


def test_running_moments_are_those_of_all_scores():
    scores = torch.randn(50, generator=torch.Generator().manual_seed(0)) * 3 + 100
    moments = RunningMoments()
    assert moments.std == 1.0
    for part in scores.split([1, 9, 20, 20]):
        moments.update(part)
    assert moments.mean == pytest.approx(scores.double().mean().item())
    assert moments.std == pytest.approx(scores.double().std().item())
    assert moments.normalise(scores).mean().item() == pytest.approx(0.0, abs=1e-5)
    again = RunningMoments()
    again.load_state_dict(moments.state_dict())
    assert again.state_dict() == moments.state_dict()


def test_kl_controllers():
    fixed = FixedKLController(0.1)
    fixed.update(kl=100.0, num_responses=64)
    assert fixed.coef == 0.1
    adaptive = AdaptiveKLController(0.2, target=6.0, horizon=1000)
    adaptive.update(kl=6.6, num_responses=100)  # error .1
    assert adaptive.coef == pytest.approx(0.2 * 1.01)
    adaptive.update(kl=60.0, num_responses=100)  # error clipped to .2
    assert adaptive.coef == pytest.approx(0.2 * 1.01 * 1.02)
    adaptive.update(kl=0.0, num_responses=100)
    assert adaptive.coef == pytest.approx(0.2 * 1.01 * 1.02 * 0.98)

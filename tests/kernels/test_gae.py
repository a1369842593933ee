"""gae against the recursion as the paper has it, response by response."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import assert_near, draw

from keju.kernels import gae as gae_module
from keju.kernels.gae import gae

pytestmark = pytest.mark.usefixtures("triton_kernels")


def obvious(rewards, values, lengths, gamma, lam):
    advantages, start = torch.zeros_like(rewards, dtype=torch.float64), 0
    for length in lengths.tolist():
        following = later = 0.0
        for t in reversed(range(start, start + length)):
            later = rewards[t].item() + gamma * following - values[t].item() + gamma * lam * later
            following = values[t].item()
            advantages[t] = later
        start += length
    return advantages


def check(lengths, gamma, lam, device, dtype=torch.float32):
    lengths = torch.tensor(lengths, dtype=torch.int64, device=device)
    rewards, values = (draw(int(lengths.sum()), dtype=dtype, device=device, seed=seed).detach() for seed in (0, 1))
    found = gae(rewards, values, lengths, gamma, lam)
    assert found.advantages.dtype == torch.float32
    expected = obvious(rewards, values, lengths, gamma, lam)
    assert_near(found.advantages, expected, torch.float32, "advantages")
    assert_near(found.returns, expected + values.cpu().double(), torch.float32, "returns")


@pytest.mark.parametrize("lengths", [[1], [63, 65], [127, 1, 100, 0, 3], [0, 0], [], [2500, 7]], ids=str)
@pytest.mark.parametrize("choice", ["triton", "reference"])
def test_odd_lengths(lengths, choice, device, monkeypatch):
    monkeypatch.setenv("KEJU_KERNELS", choice)
    check(lengths, 0.97, 0.9, device)


@pytest.mark.parametrize("block", [1, 4])
def test_blocks_meet_without_a_seam(block, device, monkeypatch):
    monkeypatch.setattr(gae_module, "BLOCK", block)
    check([5, 1, 9, 4], 0.9, 0.8, device)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 12), max_size=8), st.floats(0, 1), st.floats(0, 1))
def test_any_responses(lengths, gamma, lam):
    check(lengths, gamma, lam, "cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_summed_in_float32(dtype, device):
    check([200, 31], 1.0, 0.95, device, dtype)


def test_strided(device):
    wide = torch.randn(12, 2, device=device)
    lengths = torch.tensor([5, 7], device=device)
    found = gae(wide[:, 0], wide[:, 1], lengths)
    assert_near(found.advantages, obvious(wide[:, 0], wide[:, 1], lengths, 1.0, 0.95), torch.float32, "advantages")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": torch.ones(3)}, r"values must be \[4\], not \[3\]"),
        ({"rewards": torch.ones(2, 2)}, r"rewards must be \[N\]"),
        ({"lengths": torch.tensor([3])}, "lengths add up to 3, but there are 4 rewards"),
        ({"lengths": torch.tensor([5, -1])}, "lengths"),
        ({"lengths": torch.tensor([4.0])}, "lengths must be int64"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        gae(**{"rewards": torch.ones(4), "values": torch.ones(4), "lengths": torch.tensor([4]), **change})

"""Inverse transform sampling: the right distribution, the filters of transformers, no token of probability 0."""

from __future__ import annotations

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from keju.models.sampling import Sampling, choose, filtered, uniforms_of


def logits(rows: int = 5, vocab: int = 40) -> torch.Tensor:
    return 3 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("sampling", [Sampling(0.7, 0.8, 0), Sampling(1.0, 1.0, 5), Sampling(1.3, 0.6, 12)])
def test_filters_are_those_of_transformers(sampling):
    expected = TemperatureLogitsWarper(sampling.temperature)(None, logits())
    if sampling.top_k:
        expected = TopKLogitsWarper(sampling.top_k)(None, expected)
    if sampling.top_p < 1:
        expected = TopPLogitsWarper(sampling.top_p)(None, expected)
    torch.testing.assert_close(filtered(logits() / sampling.temperature, sampling), expected)


def test_the_likeliest_token_always_stays():
    kept = filtered(logits(), Sampling(1.0, 1e-9, 0)).isfinite()
    assert kept.sum(-1).tolist() == [1] * 5 and torch.equal(kept.float().argmax(-1), logits().argmax(-1))


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.5), Sampling(1.0, 0.7, 10)])
def test_evenly_spread_uniforms_give_each_token_its_share(sampling):
    """No chance in it: a grid of uniforms meets each interval as often as it is wide."""
    row, number = logits(1), 20_000
    grid = (torch.arange(number, dtype=torch.float64) + 0.5) / number
    ids = choose(row.expand(number, -1), grid, sampling)
    expected = filtered(row[0].double() / sampling.temperature, sampling).softmax(-1)
    shares = torch.bincount(ids, minlength=row.shape[1]) / number
    torch.testing.assert_close(shares.double(), expected, atol=1.01 / number, rtol=0)


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
def test_a_token_of_no_probability_is_never_chosen(uniform):
    row = torch.full((3, 8), -torch.inf)
    row[0, 3], row[1, :2], row[2, 7] = 0.0, 1.0, -50.0
    chosen = choose(row, torch.full((3,), uniform, dtype=torch.float64), Sampling())
    assert all(row[place, token].isfinite() for place, token in enumerate(chosen.tolist()))


def test_temperature_zero_is_the_likeliest():
    assert torch.equal(choose(logits(), torch.rand(5).double(), Sampling(0.0)), logits().argmax(-1))


def test_uniforms_belong_to_a_prompt_and_touch_no_global_state():
    before = torch.get_rng_state()
    first = uniforms_of(1, 0, 3, 4)
    assert first.shape == (3, 4) and first.dtype == torch.float64 and (first >= 0).all() and (first < 1).all()
    assert torch.equal(first, uniforms_of(1, 0, 3, 4))
    assert not torch.equal(first, uniforms_of(1, 1, 3, 4)) and not torch.equal(first, uniforms_of(2, 0, 3, 4))
    assert torch.equal(before, torch.get_rng_state())

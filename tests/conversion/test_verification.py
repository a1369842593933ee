"""Equal models pass, others do not."""

from __future__ import annotations

import copy

import pytest
import torch

from keju.conversion.verification import LENGTHS, largest_difference, sample_logits


@torch.no_grad()
def test_logits_are_those_of_rows_without_padding(causal_lm):
    logits = sample_logits(causal_lm, 90)
    assert logits.shape == (2 * sum(LENGTHS), 90)
    generator = torch.Generator().manual_seed(0)
    for length, padded in zip(LENGTHS, logits.split([*LENGTHS, *LENGTHS]), strict=False):
        row = torch.randint(90, (1, length), generator=generator)
        alone = causal_lm(input_ids=row, attention_mask=torch.ones_like(row)).logits[0, :, :90]
        torch.testing.assert_close(padded, alone, atol=1e-4, rtol=1e-4)
    assert largest_difference(logits, sample_logits(causal_lm, 90)) == 0


def test_one_changed_weight_is_seen(causal_lm):
    changed = copy.deepcopy(causal_lm)
    weight = changed.get_output_embeddings().weight
    with torch.no_grad():
        weight[5, 3] += 0.1
    with pytest.raises(ValueError, match="gives other logits"):
        largest_difference(sample_logits(causal_lm, 90), sample_logits(changed, 90))


def test_what_is_not_finite(causal_lm):
    before = torch.ones(2, 3)
    broken = torch.full((2, 3), torch.nan)
    with pytest.raises(ValueError, match="gives other logits"):
        largest_difference(before, broken)
    with pytest.raises(ValueError, match="not finite"):
        largest_difference(broken, broken)

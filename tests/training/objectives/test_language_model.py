"""The loss of SFT, with weights of turns."""

from __future__ import annotations

import pytest
import torch
from tiny_models import build

from keju.training.objectives.language_model import LanguageModelObjective
from keju.trees.packed_batch import PackedBatch
from keju.trees.segment import Segment


def test_each_token_counts_with_its_weight():
    model, objective = build("llama"), LanguageModelObjective()
    tokens = [1, 7, 8, 9, 10, 11]
    flags = [False, False, True, True, False, True]

    def loss(trained, weights=None) -> float:
        values = {"weight": weights} if weights else {}
        batch = PackedBatch.from_trees([Segment(tokens, trained=trained, token_values=values)])
        assert objective.num_items(batch) == sum(trained)
        return float(objective(model, batch).loss_sum.detach())

    first, last = loss([False, False, True, True, False, False]), loss([False] * 5 + [True])
    assert loss(flags, [1.0] * 6) == pytest.approx(first + last, rel=1e-5)
    assert loss(flags, [0.0, 0.0, 0.5, 0.5, 0.0, 2.0]) == pytest.approx(0.5 * first + 2 * last, rel=1e-5)
    # A record without weights beside one that has some counts in full.
    pair = [Segment(tokens, trained=flags), Segment(tokens, trained=flags, token_values={"weight": [0.5] * 6})]
    summed = objective(model, PackedBatch.from_trees(pair)).loss_sum
    assert float(summed.detach()) == pytest.approx(1.5 * (first + last), rel=1e-5)
    summed.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)

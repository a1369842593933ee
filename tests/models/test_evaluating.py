"""Modules are put back into the mode that each was in, also where the block fails."""

from __future__ import annotations

import pytest
from torch import nn

from keju.models.evaluating import evaluating


def test_each_module_gets_its_own_mode_back():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout()))
    model[1].eval()
    before = [module.training for module in model.modules()]
    assert before == [True, True, False, False]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == before
    with pytest.raises(RuntimeError, match="died"), evaluating(model):
        raise RuntimeError("died")
    assert [module.training for module in model.modules()] == before

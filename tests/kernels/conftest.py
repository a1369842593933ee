"""The ordinary run interprets the Triton kernels on the CPU.

tests/conftest.py sets TRITON_INTERPRET=1 where there is no CUDA device; the tests marked gpu are the same ones on
compiled kernels.
"""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> str:
    if request.param == "cpu" and torch.cuda.is_available():
        pytest.skip("kernels are compiled here, not interpreted")
    return request.param


@pytest.fixture(autouse=True)
def poisoned_memory():
    """torch.empty and its relatives hand out NaN: what a kernel forgets to write shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def triton_kernels(monkeypatch):
    monkeypatch.setenv("KEJU_KERNELS", "triton")

"""Tiny models and tokenizers that the tests share; everything is made here, nothing is fetched."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

if not torch.cuda.is_available():
    # Before anything imports Triton: its kernels run on CPU tensors then. Nothing but the kernels' tests asks for them.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from tiny_models import BUILDERS

REPO = Path(__file__).resolve().parents[1]
SHARED = REPO.parent / "shared"

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_collection_modifyitems(config, items):
    """Without a CUDA device the tests marked gpu count as deselected."""
    if not torch.cuda.is_available():
        chosen = [item for item in items if item.get_closest_marker("gpu") is None]
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("gpu")])
        items[:] = chosen


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden outputs and real data beside the repository; tests that need it skip without it."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is absent: golden outputs and real data live there")
    return SHARED


@pytest.fixture(params=sorted(BUILDERS))
def causal_lm(request):
    """A tiny causal LM of each family, random weights, float32."""
    return BUILDERS[request.param]()

"""Tiny models and tokenizers that the tests share; everything is made here, nothing is fetched."""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
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


def _patch_triton_once() -> None:
    """Triton's interpreter puts its own functions into triton.language at each launch, and once more at each call of a
    function from a kernel, where they are already: a fifth of its time."""
    import triton.language as tl
    from triton.runtime import interpreter

    patch = interpreter._patch_lang

    def patch_once(function):
        langs = [value for value in function.__globals__.values() if value is tl or value is tl.core]
        return (
            patch(function) if any(tl.core.is_builtin(lang.load) for lang in langs) else interpreter._LangPatchScope()
        )

    interpreter._patch_lang = patch_once


if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton"):
    _patch_triton_once()


_modules_when_frozen = 0


def _freeze_garbage() -> None:
    """Takes what is imported from the garbage collector's sight: a Trainer collects at each start, and would look at a
    million objects of libraries each time. Again where many more modules have come since."""
    global _modules_when_frozen
    if len(sys.modules) > _modules_when_frozen + 100:
        gc.collect()
        gc.freeze()
        _modules_when_frozen = len(sys.modules)


def pytest_collection_finish():
    _freeze_garbage()


@pytest.fixture(scope="module", autouse=True)
def _frozen_imports():
    yield
    _freeze_garbage()


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

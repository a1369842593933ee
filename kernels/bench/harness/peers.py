"""Peers that several ops are measured against, or why they cannot run here."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from harness.case import Absent, Provider, Setting


def widened(x: torch.Tensor) -> torch.Tensor:
    """In float32, or float64 for float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def compiled(setting: Setting, function: Callable[..., Any]) -> Provider | Absent:
    if setting.size == "tiny":
        return Absent("compiling takes longer than a tiny run")
    if setting.device == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
        return Absent("no C++ compiler")
    return Provider(torch.compile(function, dynamic=False))


def liger(setting: Setting, load: Callable[[], Provider]) -> Provider | Absent:
    """`load` imports what it needs of liger_kernel."""
    reason = why_no_liger(setting)
    return Absent(reason) if reason else load()


def why_no_liger(setting: Setting) -> str:
    if importlib.util.find_spec("liger_kernel") is None:
        return "liger-kernel is not installed"
    return "" if setting.device == "cuda" else "liger-kernel needs CUDA"

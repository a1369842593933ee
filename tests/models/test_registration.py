"""`import keju` makes our families known to transformers, cheaply, and only where transformers is installed."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

from transformers import AutoConfig, PreTrainedConfig

import keju.models
from keju.models import registration
from keju.models.pangu import PanguConfig


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_every_module_is_a_family_or_listed_as_plumbing():
    names = {module.name for module in pkgutil.iter_modules(keju.models.__path__)}
    families = {
        name
        for name in names
        if registration._own_classes(importlib.import_module(f"keju.models.{name}"), PreTrainedConfig)
    }
    assert names - families == registration.PLUMBING, "keju/models/registration.py: PLUMBING is out of date"


def test_registering_twice_changes_nothing():
    registration.register()
    assert type(AutoConfig.for_model("gpt_pangu")) is PanguConfig
    assert type(AutoConfig.for_model("pangu")) is PanguConfig


def test_importing_keju_is_enough_and_leaves_out_what_only_some_stages_need():
    code = """
import sys, keju
from transformers import AutoConfig
print(type(AutoConfig.for_model("pangu")).__name__)
print([name for name in ("jieba", "peft", "datasets", "trl") if name in sys.modules])
"""
    assert run(code).splitlines() == ["PanguConfig", "[]"]


def test_kernels_import_without_transformers():
    code = """
import importlib.util, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "transformers" else find_spec(name, *rest)
sys.modules["transformers"] = None  # makes an import of it fail
import keju.kernels.linear_logprob
print("fine")
"""
    assert run(code) == "fine"

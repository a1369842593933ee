"""`import keju` makes our families known to transformers, cheaply, and only where transformers is installed."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import pytest
from transformers import AutoConfig, PreTrainedConfig
from warm_process import WarmProcess

import keju.models
from keju.models import registration
from keju.models.pangu import PanguConfig


@pytest.fixture(scope="module")
def run():
    """Runs code in a process that has imported neither keju nor transformers -> what it printed."""
    with WarmProcess() as process:

        def printed(code: str) -> str:
            result = process.run(code)
            assert result.returncode == 0, result.stderr
            return result.stdout.strip()

        yield printed


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


def test_importing_keju_is_enough_and_leaves_out_what_only_some_stages_need(run):
    code = """
import sys, keju
from transformers import AutoConfig
print(type(AutoConfig.for_model("pangu")).__name__)
print([name for name in ("jieba", "peft", "datasets", "trl") if name in sys.modules])
"""
    assert run(code).splitlines() == ["PanguConfig", "[]"]


@pytest.mark.parametrize(
    "first",
    [
        "import keju",
        "import keju, importlib.util; importlib.util.find_spec('transformers')",
        # Another program's finder, of the old kind
        "import keju, sys; sys.meta_path.insert(0, type('Old', (), {'find_module': lambda *args: None})())",
        "import transformers, keju",
        "from keju.models.pangu import PanguConfig",
        "from keju.tokenizers.glm import GLMChineseTokenizer",
        "import keju.models.layers",
    ],
)
def test_families_are_registered_whatever_is_imported_first(run, first):
    code = f"""
{first}
from transformers import AutoConfig, AutoModelForCausalLM
config = AutoConfig.for_model("pangu", num_layers=1, hidden_size=8, num_heads=1, vocab_size=9)
print(type(config).__name__, type(AutoModelForCausalLM.from_config(config)).__name__)
import keju.models.pangu
assert type(config) is keju.models.pangu.PanguConfig
"""
    assert run(code) == "PanguConfig PanguForCausalLM"


@pytest.mark.parametrize("order", ["import peft, keju", "import keju, peft"])
def test_peft_may_be_imported_before_or_after_keju(run, order):
    code = f"""
{order}
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as found
print(found["baichuan"], found["qwen"], found["gpt_pangu"], sorted(found["glm"]))
"""
    assert run(code) == "['W_pack'] ['c_attn'] ['q_proj', 'v_proj'] ['q_proj', 'query_key_value', 'v_proj']"


def fresh(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_data_is_prepared_without_torch():
    code = """
import sys
import keju.data_prepare.pipeline.worker
print([name for name in ("torch", "transformers", "rich", "pandas", "datasets") if name in sys.modules])
"""
    assert fresh(code) == "[]"


def test_a_process_may_leave_the_families_out(run):
    code = """
import sys, keju
keju.leave_out_families()
import transformers
print([name for name in sys.modules if name.startswith("keju.")])
"""
    assert run(code) == "[]"


def test_kernels_import_without_transformers():
    code = """
import importlib.util, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "transformers" else find_spec(name, *rest)
sys.modules["transformers"] = None  # makes an import of it fail
import keju.kernels.linear_logprob
print("fine")
"""
    assert fresh(code) == "fine"

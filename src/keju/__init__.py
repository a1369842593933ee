"""Keju (科举): from raw Chinese text to an aligned, evaluated language model.

Importing it makes our model and tokenizer families known to the Auto classes of transformers, and what LoRA adapts in
them to PEFT, as soon as these are imported, whether before or after. What does without transformers and torch
(keju.records, keju.data_prepare) does not wait for them: their import takes seconds.
"""

import logging
import os
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from types import ModuleType

__version__ = "0.1.0"

# How long a thread of GNU OpenMP spins before it sleeps while it waits for another. Its default makes training on CPUs
# tens of times slower as soon as anything else runs there. It is read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
# bitsandbytes, which PEFT imports where it is installed, warns of a CPU kernel on a hub that nothing here asks for.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def _after_import(name: str, then: Callable[[ModuleType], None]) -> None:
    """Calls `then(module)` once: now if the module `name` has been imported, else right after it will have been."""
    module = sys.modules.get(name)
    if module is not None:
        then(module)
    else:
        sys.meta_path.insert(0, _Finder(name, then))


class _Finder(MetaPathFinder):
    def __init__(self, name: str, then: Callable[[ModuleType], None]) -> None:
        self.name = name
        self.then = then

    def find_spec(self, name, path, target=None):
        if name != self.name:
            return None
        # Other programs' finders may be of the old kind, without find_spec; Python passes over them, too.
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is None:  # it is not installed
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            sys.meta_path.remove(self)  # and not before: many look for a spec without importing anything
            self.then(sys.modules[name])  # a module may put another in its place, as transformers does

        spec.loader.exec_module = exec_module
        return spec


def _register_families(transformers: ModuleType) -> None:
    from keju.models import registration

    registration.register()


def _add_lora_targets(constants: ModuleType) -> None:
    from keju.models import registration

    registration.add_lora_targets(constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING)


def leave_out_families() -> None:
    """For a process that needs transformers but none of our families: their import takes seconds."""
    sys.meta_path[:] = [one for one in sys.meta_path if not (isinstance(one, _Finder) and one.name == "transformers")]


_after_import("transformers", _register_families)
_after_import("peft.utils.constants", _add_lora_targets)

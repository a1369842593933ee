"""Which projections PEFT adapts in our families unless it is told otherwise.

PEFT looks a model_type up in a table of its own. Families name their projections in `LORA_TARGETS`, and these are added
to that table when PEFT is imported, so that `import keju` need not import it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.util import find_spec

TABLE = "peft.utils.constants"


def add_lora_targets(targets: dict[str, Sequence[str]]) -> None:
    """`targets`: model_type -> names of modules. Joins what PEFT already has for a model_type that is shared."""

    def fill(module) -> None:
        table = module.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
        for model_type, names in targets.items():
            table[model_type] = sorted({*table.get(model_type, ()), *names})

    if TABLE in sys.modules:
        fill(sys.modules[TABLE])
    elif find_spec("peft") is not None:
        sys.meta_path.insert(0, _AfterImport(TABLE, fill))


class _AfterImport(MetaPathFinder):
    """Calls `then(module)` once, right after the module `name` has been imported."""

    def __init__(self, name: str, then) -> None:
        self.name = name
        self.then = then

    def find_spec(self, name, path, target=None):
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module) -> None:
            execute(module)
            self.then(module)

        spec.loader.exec_module = exec_module
        return spec

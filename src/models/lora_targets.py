"""Which projections PEFT adapts in our families unless it is told otherwise.

PEFT looks a model_type up in a table of its own. Families name their projections in `LORA_TARGETS`, and these are added
to that table when PEFT is imported, so that `import keju` need not import it.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from keju.after_import import after_import

TABLE = "peft.utils.constants"


def add_lora_targets(targets: dict[str, Sequence[str]]) -> None:
    """`targets`: model_type -> names of modules. Joins what PEFT already has for a model_type that is shared."""

    def fill(module) -> None:
        table = module.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
        for model_type, names in targets.items():
            table[model_type] = sorted({*table.get(model_type, ()), *names})

    if find_spec("peft") is not None:
        after_import(TABLE, fill)

"""What other parts of Keju have to know of a stage without running it: one file in this folder for each stage.

The file name is the command: `keju sft` is stages/sft.py, which names the script that does the work. To add a stage,
write its file here, its script, and a shell script of the same name in examples/.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from dataclasses import dataclass
from typing import Any, Literal

import keju.stages


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: that of its file, and the command.
        summary: a line for `keju --help`.
        script: module keju.<script>; its settings are examples/configs/<script>.yaml.
        position: place among the commands of `keju --help`.
        flags: what makes the script this stage, where it does others as well.
        aliases: other names of the command.
        form: how the stage makes token trees of records, a key of keju.encoding.dataset.FORMS; "": it reads none, or
            not as trees.
        train_file: records that it reads from --data_dir by default.
        eval_file: held-out records.
        objective: "module:class" in keju.training.objectives that the stage minimises; "" where it samples what it is
            trained on.
        scalar: the model has a head that scores, none that predicts tokens.
        dropout: "all" where dropout of the model is on in training by default, else "none".
        plan: how keju.planning rehearses a step of it; None: it cannot.
        folder: its folder in the quickstart, and its key in the report.
        title: heading in the report.
        purpose: what it does, in one sentence for the report.
        quickstart: flags in the quickstart, which would take hours with all records and items.
        fast: further flags there with --fast: enough to show that everything runs, too little to learn much.
    """

    name: str
    summary: str | None
    script: str
    position: int
    flags: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    form: str = ""
    train_file: str = ""
    eval_file: str = ""
    objective: str = ""
    scalar: bool = False
    dropout: Literal["all", "none"] = "all"
    plan: Literal["objective", "policy"] | None = None
    folder: str = ""
    title: str = ""
    purpose: str = ""
    quickstart: tuple[str, ...] = ()
    fast: tuple[str, ...] = ()

    @property
    def is_ranked(self) -> bool:
        """Whether the answers to a prompt are branches of one tree."""
        return self.form in ("ranked", "kto")

    def make_objective(self, *args: Any, **settings: Any) -> Any:
        """An instance of the class that `objective` names."""
        module, _, name = self.objective.partition(":")
        return getattr(importlib.import_module(f"keju.training.objectives.{module}"), name)(*args, **settings)


@functools.cache
def stages() -> dict[str, Stage]:
    """All stages by their names, in the order of `position`."""
    found = {}
    for module in pkgutil.iter_modules(keju.stages.__path__):
        if module.name != "spec":
            found[module.name] = importlib.import_module(f"keju.stages.{module.name}").STAGE
    return dict(sorted(found.items(), key=lambda item: item[1].position))


def stages_with(attribute: str) -> tuple[str, ...]:
    """Names of the stages that have `attribute`: of those that read trees, say, stages_with("form")."""
    return tuple(name for name, stage in stages().items() if getattr(stage, attribute))

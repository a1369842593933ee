"""docs/flags.md: what each flag of the training stages does, made from the arguments themselves.

python tests/flag_table.py > docs/flags.md
"""

from __future__ import annotations

import dataclasses
import sys
from typing import get_type_hints

from stage_help import parsed
from transformers import TrainingArguments

from keju.training.flag_effects import CONDITIONS, INHERITED_RANGES, never
from keju.training.ranges import range_of

STAGES = ("pretrain", "train_sft", "train_reward", "train_dpo", "train_rlhf", "train_grpo")
HEAD = """# Flags of the training stages

Made by `python tests/flag_table.py > docs/flags.md`; a test compares. What each flag means is in `--help_all` of its
stage. "works": it has the effect that its help says. "refused": a value other than the default ends the run with one
line and exit code 2, before a model loads. "no effect": a line warns.

Numbers are checked where they are parsed, in flags and YAML files; NaN and infinity are in no range.
"""


def argument_classes(stage: str) -> tuple[type, ...]:
    """Those that the script of a stage parses."""
    return parsed(stage).args


def effect(name: str) -> str:
    condition = CONDITIONS.get(name)
    if condition is None:
        return "works"
    kind = "refused" if condition.is_refused else "no effect"
    return f"{kind}: {condition.why}" if condition.holds is never else f"works; {kind} where {condition.why}"


def rows() -> dict[str, tuple[list[str], str, bool]]:
    """Flag -> (its stages, its range, whether it is one of transformers that no stage of ours declares)."""
    found: dict[str, tuple[list[str], str, bool]] = {}
    own: set[str] = set()
    inherited = {item.name for item in dataclasses.fields(TrainingArguments)}
    for stage in STAGES:
        for kind in argument_classes(stage):
            hints = get_type_hints(kind, include_extras=True)
            for base in kind.__mro__:
                if base is not TrainingArguments:
                    own |= set(base.__dict__.get("__annotations__", ()))
            for item in dataclasses.fields(kind):
                if not item.init:
                    continue
                allowed = range_of(hints[item.name])
                if allowed is None and issubclass(kind, TrainingArguments):
                    allowed = INHERITED_RANGES.get(item.name)
                stages, text, _ = found.setdefault(item.name, ([], str(allowed or ""), False))
                stages.append(stage.removeprefix("train_"))
    return {name: (stages, text, name in inherited and name not in own) for name, (stages, text, _) in found.items()}


def table() -> str:
    found = rows()
    everywhere = [stage.removeprefix("train_") for stage in STAGES]
    trainer = everywhere[:4]
    lines = [HEAD]
    for title, is_inherited in (("Declared by Keju", False), ("Inherited from transformers.TrainingArguments", True)):
        lines += [f"\n## {title}\n", "| flag | stages | numbers | effect |", "|---|---|---|---|"]
        for name in sorted(name for name in found if found[name][2] == is_inherited):
            stages, text, _ = found[name]
            shown = "all" if stages == everywhere else "all but rlhf, grpo" if stages == trainer else ", ".join(stages)
            lines.append(f"| `--{name}` | {shown} | {text} | {effect(name)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(table())

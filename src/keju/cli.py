"""The command `keju`: one word for each stage, with the flags of the stage itself.

keju sft --model_name_or_path runs/pretrain --data_dir runs/data/idiom --output_dir runs/sft
"""

from __future__ import annotations

import difflib
import os
import runpy
import sys
from pathlib import Path
from typing import NoReturn

import keju
from keju.errors import missing_extra
from keju.stages.spec import Stage, stages

HELP = Path(__file__).parent / "help"


def main(argv: list[str] | None = None) -> NoReturn:
    """Runs the stage that the first argument names, and exits with its code.

    Args:
        argv: what follows `keju` (default: sys.argv[1:]). A module's own name (train_sft) is taken, too.
    """
    command, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help", "help"):
        show(overview())
    if command == "--version":
        print(f"keju {keju.__version__}")
        sys.exit(0)
    stage = find(command)
    if stage is None:
        names = [name for one in stages().values() for name in (one.name, *one.aliases, one.script)]
        nearest = difflib.get_close_matches(command, names, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else "keju --help lists all"
        print(f"error: unknown command {command}; {hint}", file=sys.stderr)
        sys.exit(2)
    if any(flag in rest for flag in ("-h", "--help")):
        # Made ahead: the parser of a stage imports torch and transformers, for seconds.
        show((HELP / f"{stage.script}.txt").read_text(encoding="utf-8").rstrip("\n"))
    behind = int(bool(rest) and not rest[0].startswith("-"))  # the YAML file comes first
    sys.argv[1:] = [*rest[:behind], *stage.flags, *rest[behind:]]
    try:
        runpy.run_module(f"keju.{stage.script}", run_name="__main__", alter_sys=True)
    except ModuleNotFoundError as error:  # as its script is imported; from then on it reports what is missing itself
        if not (missing := missing_extra(error)):
            raise
        print(f"error: {missing}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)  # not reached: a stage exits


def show(text: str) -> NoReturn:
    """Prints, and exits with 0, also where nobody reads on (`keju --help | head`)."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
    sys.exit(0)


def find(command: str) -> Stage | None:
    """The stage of this name or alias, or the first one of this script."""
    name = command.replace("-", "_")
    found = stages().get(name)
    return found or next((one for one in stages().values() if name in (*one.aliases, one.script)), None)


def overview() -> str:
    """What `keju --help` prints: each command in a line."""
    width = max(map(len, stages()))
    return "\n".join(
        [
            "usage: keju COMMAND [config.yaml] [--flag value ...]",
            "",
            *(f"{stage.name:<{width}}  {stage.summary}" for stage in stages().values()),
            "",
            "keju COMMAND --help lists its flags. Each is also python -m keju.<script>, and a script in examples/.",
        ]
    )

"""The command `keju`: one word for each stage, with the flags of the stage itself.

keju sft --model_name_or_path runs/pretrain --data_dir runs/data/idiom --output_dir runs/sft
"""

from __future__ import annotations

import difflib
import runpy
import sys
from pathlib import Path
from typing import NoReturn

import keju

PACKAGE = Path(__file__).parent
HELP = PACKAGE / "help"
# Command -> the module that does it, in the order in which a model meets them.
COMMANDS = {
    "prepare": "prepare_data",
    "export": "export_data",
    "tokenize": "tokenize_data",
    "doctor": "doctor",
    "plan": "plan",
    "pretrain": "pretrain",
    "sft": "train_sft",
    "reward": "train_reward",
    "dpo": "train_dpo",
    "ppo": "train_rlhf",
    "grpo": "train_grpo",
    "generate": "pred_pretrain",
    "score": "pred_reward",
    "evaluate": "eval_pretrain",
    "evaluate-reward": "eval_reward",
    "report": "eval_report",
    "merge": "merge",
    "convert": "convert",
    "quickstart": "quickstart",
    "results": "results",
}


def main(argv: list[str] | None = None) -> NoReturn:
    """Runs the stage that the first argument names, and exits with its code.

    Args:
        argv: what follows `keju` (default: sys.argv[1:]). A module's own name (train_sft) is taken, too.
    """
    command, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help", "help"):
        print(overview())
        sys.exit(0)
    if command == "--version":
        print(f"keju {keju.__version__}")
        sys.exit(0)
    module = COMMANDS.get(command, command.replace("-", "_"))
    if module not in COMMANDS.values():
        nearest = difflib.get_close_matches(command, [*COMMANDS, *COMMANDS.values()], n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else "keju --help lists all"
        print(f"error: unknown command {command}; {hint}", file=sys.stderr)
        sys.exit(2)
    if any(flag in rest for flag in ("-h", "--help")):
        # Made ahead: the parser of a stage imports torch and transformers, for seconds.
        print((HELP / f"{module}.txt").read_text(encoding="utf-8"), end="")
        sys.exit(0)
    sys.argv[1:] = rest
    runpy.run_module(f"keju.{module}", run_name="__main__", alter_sys=True)
    sys.exit(0)  # not reached: a stage exits


def overview() -> str:
    """What `keju --help` prints: each command with the first line of its help."""
    width = max(map(len, COMMANDS))
    lines = [f"{command:<{width}}  {summary(module)}" for command, module in COMMANDS.items()]
    return "\n".join(
        [
            "usage: keju COMMAND [config.yaml] [--flag value ...]",
            "",
            *lines,
            "",
            "keju COMMAND --help lists its flags. Each is also python -m keju.MODULE, and a script in examples/.",
        ]
    )


def summary(module: str) -> str:
    """The first line of a stage's own description."""
    return (HELP / f"{module}.txt").read_text(encoding="utf-8").splitlines()[2]

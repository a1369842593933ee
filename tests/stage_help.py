"""src/keju/help: what `keju COMMAND --help` prints, made from the arguments of each stage.

python tests/stage_help.py
"""

from __future__ import annotations

import importlib
import sys
from contextlib import suppress
from unittest import mock

from keju.cli import HELP
from keju.records.writing import whole_file
from keju.stages.spec import stages
from keju.training.arguments import make_parser

SCRIPTS = sorted({stage.script for stage in stages().values()})


def parsed(module: str) -> mock._Call:
    """The call of parse_arguments in the script keju.<module>."""
    script = importlib.import_module(f"keju.{module}")
    with mock.patch.object(script, "parse_arguments", side_effect=StopIteration) as parse, suppress(StopIteration):
        script.main()
    return parse.call_args


def help_of(module: str) -> str:
    call = parsed(module)
    with mock.patch.object(sys, "argv", [f"{module}.py"]):
        return make_parser(*call.args, description=call.kwargs["description"]).format_help()


if __name__ == "__main__":
    for name in SCRIPTS:
        with whole_file(HELP / f"{name}.txt") as path:
            path.write_text(help_of(name), encoding="utf-8")

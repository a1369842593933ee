"""Several stages one after the other, each a process of its own, as a shell script would run them."""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import torch

from keju.training.launch import run_stage
from keju.training.run_folder import is_finished


class Pipeline:
    """Runs stages as a user would, skipping those that finished before with the same flags on the same inputs.

    extra: flags of a stage, by its name, that go behind all others.
    """

    def __init__(self, output_dir: str, config_dir: str, extra: Mapping[str, Sequence[str]] | None = None) -> None:
        self.root = Path(output_dir).expanduser().resolve()
        self.configs = Path(config_dir).expanduser().resolve()
        self.extra = extra or {}
        self.inputs_changed = False

    def run(self, stage: str, name: str, *flags: str) -> Path:
        """Runs `python -m keju.<stage>` into the folder `name` and returns that folder."""
        folder = self.root / name
        config = self.configs / f"{stage}.yaml"
        argv = [str(config)] if config.exists() else []
        argv += [*flags, "--output_dir", str(folder), *self.extra.get(stage, ())]
        if stage != "prepare_data":
            argv.append("--overwrite_output_dir")
            if not self.inputs_changed and is_finished(folder, argv) and not newer(config, folder / "summary.json"):
                print(f"== {name}: done before", flush=True)
                return folder
            self.inputs_changed = True
        print(f"\n== {name}: python -m keju.{stage} {shlex.join(argv)}", flush=True)
        code = _run(stage, argv)
        if code:
            # The stage has said what went wrong, in its last lines above.
            print(f"stopped in {name} (exit code {code})", file=sys.stderr)
            sys.exit(code)
        return folder


def _run(stage: str, argv: Sequence[str]) -> int:
    """Runs keju.<stage> in a process of its own and returns its exit code.

    The process is a fork of this one, which imports once what all of them need. CUDA does not survive a fork; where
    there is a GPU, Python starts anew.
    """
    if torch.cuda.is_available():
        return subprocess.run([sys.executable, "-m", f"keju.{stage}", *argv], check=False).returncode
    script = importlib.import_module(f"keju.{stage}")
    gc.freeze()  # so that collections in the fork neither visit nor copy what is there
    process = multiprocessing.get_context("fork").Process(target=_become, args=(script, argv))
    process.start()
    process.join()
    return process.exitcode or 0  # a number, once it has ended


def _become(script: ModuleType, argv: Sequence[str]) -> None:
    sys.argv[:] = [str(script.__file__), *argv]
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    run_stage(script.main)


def newer(path: Path, other: Path) -> bool:
    return path.exists() and path.stat().st_mtime > other.stat().st_mtime


def tokenizer_of(data: Path, model: str) -> Path:
    """The tokenizer in a data folder that was made for the named size `model`, or the one for all that need none."""
    own = data / f"tokenizer-{model}"
    return own if own.is_dir() else data / "tokenizer"

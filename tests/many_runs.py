"""Runs stages one after the other in the processes of one launcher, so that all of them start up once.

deepspeed --num_gpus 2 many_runs.py RUNS.json
python many_runs.py RUNS.json

RUNS.json: {name: [module, flag, ...]}. Each process writes RUNS.<rank>.json: {name: exit code}.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState

from keju.training.launch import run_guarded


def main() -> None:
    path = Path(sys.argv[-1])
    codes = {}
    for name, (module, *flags) in json.loads(path.read_text(encoding="utf-8")).items():
        stage = importlib.import_module(f"keju.{module}")
        sys.argv = [f"{module}.py", *flags]
        codes[name] = run_guarded(stage.main)
        print(f"{name}: exit code {codes[name]}", flush=True)
        gc.collect()
        AcceleratorState._reset_state(reset_partial_state=True)  # each run has its own configuration
    path.with_suffix(f".{os.environ.get('RANK', '0')}.json").write_text(json.dumps(codes))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()

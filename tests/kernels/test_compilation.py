"""Every kernel compiles to machine code at the sizes of real models, and fits: no GPU is needed for that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("compile_kernels.py")


@pytest.mark.parametrize(
    ("capability", "shared_memory"),
    [
        pytest.param(90, 227 * 1024, id="H100"),
        pytest.param(80, 163 * 1024, id="A100", marks=pytest.mark.slow),
        pytest.param(89, 99 * 1024, id="RTX4090", marks=pytest.mark.slow),
    ],
)
def test_kernels_compile_and_fit(capability, shared_memory, tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, SCRIPT, str(capability), str(shared_memory)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    kernels = [json.loads(line) for line in run.stdout.splitlines()]
    files = {kernel["kernel"].split(".")[0] for kernel in kernels}
    expected = {"attention_kernels", "gae", "gelu", "glu", "logit_chunks", "lora", "nf4", "rotary", "row_norm"}
    assert files >= expected
    for kernel in kernels:
        assert kernel["shared"] <= shared_memory, kernel
        # Registers that do not fit go to the stack, in slow memory. Rows of 16,384 do not quite fit.
        assert kernel["stack"] <= 128 or kernel["size"] > 8192, kernel

"""GELU in its three forms."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from harness.case import FORWARD, TRAINING, Absent, Case, Provider, Setting, Work, draw
from harness.peers import compiled

from keju.kernels.gelu import gelu

SIZES = {"full": (8192, 14336), "small": (1024, 2048), "tiny": (16, 64)}
PLAIN = {
    "exact": F.gelu,
    "tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick": lambda x: x * torch.sigmoid(1.702 * x),
}


def cases(setting: Setting) -> list[Case]:
    return [_case(setting, form) for form in PLAIN]


def _case(setting: Setting, form: str) -> Case:
    rows, size = SIZES[setting.size]
    matrix = rows * size * setting.dtype.itemsize

    def build():
        return {"x": draw(setting, rows, size)}, {
            "keju": Provider(lambda x: gelu(x, form)),
            "torch": Provider(PLAIN[form]),
            "torch.compile": compiled(setting, PLAIN[form]),
            "liger": Absent("it has GELU only with a gate"),
        }

    # x, y; then dy, x, dx
    return Case(
        f"{rows} x {size}, {form}", setting.dtype, {FORWARD: Work(2 * matrix), TRAINING: Work(5 * matrix)}, build
    )

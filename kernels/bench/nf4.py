"""NF4 weights back to a matrix: one projection of an 8B Llama."""

from __future__ import annotations

import torch
from harness.case import FORWARD, Case, Provider, Setting, Work, draw
from harness.peers import compiled

from keju.kernels.nf4 import NF4, dequantize_nf4, quantize_nf4

SIZES = {"full": (14336, 4096), "small": (2048, 1024), "tiny": (64, 64)}
PARTS = ("packed", "absmax", "levels")


def cases(setting: Setting) -> list[Case]:
    rows, columns = SIZES[setting.size]
    size = rows * columns
    # Half a byte an element, four bytes a block of 64; then the matrix.
    work = {FORWARD: Work(size / 2 + size / 16 + size * setting.dtype.itemsize)}

    def build():
        weight = quantize_nf4(draw(setting, rows, columns, trained=False))
        return {name: getattr(weight, name) for name in PARTS}, {
            "keju": Provider(lambda **parts: dequantize_nf4(NF4(**parts, shape=(rows, columns), dtype=setting.dtype))),
            "torch": Provider(_plain(setting.dtype, rows, columns)),
            "torch.compile": compiled(setting, _plain(setting.dtype, rows, columns)),
        }

    return [Case(f"{rows} x {columns}", setting.dtype, work, build)]


def _plain(dtype: torch.dtype, rows: int, columns: int):
    def run(packed, absmax, levels):
        codes = torch.stack([packed >> 4, packed & 15], dim=1).view(-1, 64)
        return (levels[codes.long()] * absmax[:, None]).to(dtype).view(rows, columns)

    return run

"""RMSNorm as Llama has it, alone and with the residual add before it."""

from __future__ import annotations

import torch
from harness.case import FORWARD, TRAINING, Case, Provider, Setting, Work, draw
from harness.peers import compiled, liger, widened

from keju.kernels.rms_norm import rms_norm

SIZES = {"full": (8192, 4096), "small": (1024, 1024), "tiny": (16, 64)}
EPS = 1e-6


def cases(setting: Setting) -> list[Case]:
    return [_case(setting, with_residual) for with_residual in (False, True)]


def _case(setting: Setting, with_residual: bool) -> Case:
    rows, hidden = SIZES[setting.size]
    matrix = rows * hidden * setting.dtype.itemsize
    # x, y; then dy, x, dx. The residual adds itself and the sum, and the gradient of the sum.
    work = {FORWARD: Work((4 if with_residual else 2) * matrix), TRAINING: Work((8 if with_residual else 5) * matrix)}

    def build():
        inputs = {"x": draw(setting, rows, hidden), "weight": draw(setting, hidden, seed=1)}
        if with_residual:
            inputs["residual"] = draw(setting, rows, hidden, seed=2)
        return inputs, {
            "keju": Provider(_ours),
            "torch": Provider(_plain),
            "torch.compile": compiled(setting, _plain),
            "liger": liger(setting, _liger),
        }

    return Case(f"{rows} x {hidden}" + (", residual" if with_residual else ""), setting.dtype, work, build)


def _ours(x, weight, residual=None):
    return rms_norm(x, weight, EPS, residual=residual, casting="llama")


def _plain(x, weight, residual=None):
    x = x if residual is None else x + residual
    wide = widened(x)
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)
    y = weight * normed.to(x.dtype)
    return y if residual is None else (y, x)


def _liger() -> Provider:
    from liger_kernel.transformers.functional import liger_fused_add_rms_norm, liger_rms_norm

    def run(x, weight, residual=None):
        if residual is None:
            return liger_rms_norm(x, weight, EPS)
        return liger_fused_add_rms_norm(x, residual, weight, EPS)

    return Provider(run)

"""LayerNorm, alone and with the residual add before it."""

from __future__ import annotations

import torch.nn.functional as F
from harness.case import FORWARD, TRAINING, Absent, Case, Provider, Setting, Work, draw
from harness.peers import compiled, liger

from keju.kernels.layer_norm import layer_norm

SIZES = {"full": (8192, 4096), "small": (1024, 1024), "tiny": (16, 64)}
EPS = 1e-5


def cases(setting: Setting) -> list[Case]:
    return [_case(setting, with_residual) for with_residual in (False, True)]


def _case(setting: Setting, with_residual: bool) -> Case:
    rows, hidden = SIZES[setting.size]
    matrix = rows * hidden * setting.dtype.itemsize
    # As for rms_norm.
    work = {FORWARD: Work((4 if with_residual else 2) * matrix), TRAINING: Work((8 if with_residual else 5) * matrix)}

    def build():
        inputs = {
            "x": draw(setting, rows, hidden),
            "weight": draw(setting, hidden, seed=1),
            "bias": draw(setting, hidden, seed=2),
        }
        if with_residual:
            inputs["residual"] = draw(setting, rows, hidden, seed=3)
        return inputs, {
            "keju": Provider(_ours),
            "torch": Provider(_plain),
            "torch.compile": compiled(setting, _plain),
            "liger": Absent("it fuses no residual") if with_residual else liger(setting, _liger),
        }

    return Case(f"{rows} x {hidden}" + (", residual" if with_residual else ""), setting.dtype, work, build)


def _ours(x, weight, bias, residual=None):
    return layer_norm(x, weight, bias, EPS, residual=residual)


def _plain(x, weight, bias, residual=None):
    x = x if residual is None else x + residual
    y = F.layer_norm(x, x.shape[-1:], weight, bias, EPS)
    return y if residual is None else (y, x)


def _liger() -> Provider:
    from liger_kernel.transformers.functional import liger_layer_norm

    return Provider(lambda x, weight, bias: liger_layer_norm(x, weight, bias, EPS))

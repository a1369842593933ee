"""SwiGLU and GeGLU: the gate beside the values or in one matrix with them."""

from __future__ import annotations

import torch.nn.functional as F
from harness.case import FORWARD, TRAINING, Absent, Case, Provider, Setting, Work, draw
from harness.peers import compiled, liger

from keju.kernels.glu import geglu, swiglu

SIZES = {"full": (8192, 14336), "small": (1024, 2048), "tiny": (16, 64)}


def cases(setting: Setting) -> list[Case]:
    return [
        _case(setting, "SwiGLU", swiglu, _plain_swiglu, liger(setting, _liger_swiglu)),
        _case(setting, "SwiGLU, one matrix", swiglu, _plain_packed, Absent("it takes two matrices"), packed=True),
        _case(
            setting, "GeGLU tanh", lambda gate, up: geglu(gate, up, "tanh"), _plain_geglu, liger(setting, _liger_geglu)
        ),
    ]


def _case(setting: Setting, name: str, ours, plain, of_liger: Provider | Absent, packed: bool = False) -> Case:
    rows, size = SIZES[setting.size]
    matrix = rows * size * setting.dtype.itemsize

    def build():
        inputs = {"gate": draw(setting, rows, 2 * size if packed else size)}
        if not packed:
            inputs["up"] = draw(setting, rows, size, seed=1)
        providers = {"keju": Provider(ours), "torch": Provider(plain), "torch.compile": compiled(setting, plain)}
        return inputs, {**providers, "liger": of_liger}

    # gate, up, out; then dout, gate, up, dgate, dup
    return Case(
        f"{rows} x {size}, {name}", setting.dtype, {FORWARD: Work(3 * matrix), TRAINING: Work(8 * matrix)}, build
    )


def _plain_swiglu(gate, up):
    return F.silu(gate) * up


def _plain_packed(gate):
    gate, up = gate.chunk(2, dim=-1)
    return F.silu(gate) * up


def _plain_geglu(gate, up):
    return F.gelu(gate, approximate="tanh") * up


def _liger_swiglu() -> Provider:
    from liger_kernel.transformers.functional import liger_swiglu

    return Provider(lambda gate, up: liger_swiglu(gate, up))


def _liger_geglu() -> Provider:
    from liger_kernel.transformers.functional import liger_geglu

    return Provider(lambda gate, up: liger_geglu(gate, up))

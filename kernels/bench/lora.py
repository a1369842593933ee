"""LoRA on query, key and value of an 8B Llama, over plain and over NF4 weights."""

from __future__ import annotations

import torch
from harness.case import FORWARD, TRAINING, Case, Provider, Setting, Work, draw
from harness.peers import compiled

from keju.kernels.lora import LoraLinear, lora_linear
from keju.kernels.nf4 import NF4, dequantize_nf4, quantize_nf4

# tokens, hidden size, outputs of each projection
SIZES = {"full": (8192, 4096, (4096, 1024, 1024)), "small": (256, 512, (512, 128, 128)), "tiny": (8, 64, (64, 32, 32))}
RANK, SCALE = 16, 2.0


def cases(setting: Setting) -> list[Case]:
    return [_case(setting, quantised) for quantised in (False, True)]


def _case(setting: Setting, quantised: bool) -> Case:
    tokens, hidden, outputs = SIZES[setting.size]
    product = 2 * tokens * hidden * sum(outputs)
    # Frozen weights take part in one product forward and one backward; the adapters' are left out of the account.
    work = {FORWARD: Work(flops=product), TRAINING: Work(flops=2 * product)}

    def build():
        weights = [
            draw(setting, size, hidden, scale=hidden**-0.5, trained=False, seed=i) for i, size in enumerate(outputs)
        ]
        if quantised:
            weights = [quantize_nf4(weight) for weight in weights]
        inputs = {"x": draw(setting, tokens, hidden)}
        for number, size in enumerate(outputs):
            inputs[f"a{number}"] = draw(setting, RANK, hidden, scale=hidden**-0.5, seed=number)
            inputs[f"b{number}"] = draw(setting, size, RANK, scale=0.1, seed=number)
        return inputs, {
            "keju": Provider(_ours(weights)),
            "torch": Provider(_plain(weights)),
            "torch.compile": compiled(setting, _plain(weights)),
        }

    base = "NF4" if quantised else "plain"
    name = f"{tokens} x {hidden} to {', '.join(map(str, outputs))}, rank {RANK}, {base}"
    return Case(name, setting.dtype, work, build)


def _ours(weights: list[torch.Tensor | NF4]):
    def run(x, **adapters):
        layers = [
            LoraLinear(weight, adapters[f"a{number}"], adapters[f"b{number}"], SCALE)
            for number, weight in enumerate(weights)
        ]
        return lora_linear(x, *layers)

    return run


def _plain(weights: list[torch.Tensor | NF4]):
    """NF4 weights become matrices first, as in bitsandbytes' layers."""

    def run(x, **adapters):
        outputs = []
        for number, weight in enumerate(weights):
            matrix = dequantize_nf4(weight, x.dtype) if isinstance(weight, NF4) else weight.to(x.dtype)
            low = x @ adapters[f"a{number}"].t()
            outputs.append(x @ matrix.t() + SCALE * (low @ adapters[f"b{number}"].t()))
        return tuple(outputs)

    return run

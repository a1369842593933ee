"""Cross-entropy from hidden states, with the head trained and with it frozen (LoRA)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from harness.case import FORWARD, TRAINING, Case, Provider, Setting, Work, draw
from harness.peers import compiled, liger, widened

from keju.kernels.linear_cross_entropy import linear_cross_entropy

# Tokens, hidden size, vocabulary
SIZES = {"full": (8192, 4096, 131072), "small": (256, 256, 8000), "tiny": (16, 32, 300)}


def cases(setting: Setting) -> list[Case]:
    return [_case(setting, trained) for trained in (True, False)]


def _case(setting: Setting, trained: bool) -> Case:
    tokens, hidden_size, vocab_size = SIZES[setting.size]

    def build():
        generator = torch.Generator().manual_seed(0)
        inputs = {
            "hidden": draw(setting, tokens, hidden_size),
            "weight": draw(setting, vocab_size, hidden_size, scale=hidden_size**-0.5, trained=trained, seed=1),
            "target": torch.randint(vocab_size, (tokens,), generator=generator).to(setting.device),
        }
        return inputs, {
            "keju": Provider(linear_cross_entropy),
            "torch": Provider(_plain),
            "torch.compile": compiled(setting, _plain),
            "liger": liger(setting, _liger),
        }

    product = 2 * tokens * hidden_size * vocab_size
    work = {FORWARD: Work(flops=product), TRAINING: Work(flops=(3 if trained else 2) * product)}
    name = f"{tokens} tokens, {hidden_size} -> {vocab_size}, head {'trained' if trained else 'frozen'}"
    return Case(name, setting.dtype, work, build)


def _plain(hidden, weight, target):
    return F.cross_entropy(widened(hidden @ weight.t()), target)


def _liger() -> Provider:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    # The gradient of the head summed in float32, as ours is: by default it is in the dtype of the head.
    return Provider(
        lambda hidden, weight, target: liger_fused_linear_cross_entropy(
            hidden, weight, target, accum_dtype=torch.float32
        )
    )

"""Log-probabilities of targets from hidden states: the head trained, with and without entropy, and the head frozen."""

from __future__ import annotations

import torch
from harness.case import FORWARD, TRAINING, Absent, Case, Provider, Setting, Work, draw
from harness.peers import compiled, liger, widened

from keju.kernels.linear_logprob import linear_logprob

# Tokens, hidden size, vocabulary
SIZES = {"full": (8192, 4096, 131072), "small": (256, 256, 8000), "tiny": (16, 32, 300)}


def cases(setting: Setting) -> list[Case]:
    return [
        _case(setting, "head trained"),
        _case(setting, "head trained, entropy", with_entropy=True),
        _case(setting, "head frozen", trained=False),
    ]


def _case(setting: Setting, what: str, trained: bool = True, with_entropy: bool = False) -> Case:
    tokens, hidden_size, vocab_size = SIZES[setting.size]
    plain = _plain_with_entropy if with_entropy else _plain

    def build():
        generator = torch.Generator().manual_seed(0)
        inputs = {
            "hidden": draw(setting, tokens, hidden_size),
            "weight": draw(setting, vocab_size, hidden_size, scale=hidden_size**-0.5, trained=trained, seed=1),
            "target": torch.randint(vocab_size, (tokens,), generator=generator).to(setting.device),
        }
        return inputs, {
            "keju": Provider(
                lambda hidden, weight, target: linear_logprob(hidden, weight, target, with_entropy=with_entropy)
            ),
            "torch": Provider(plain),
            "torch.compile": compiled(setting, plain),
            "liger": Absent("it has no entropy on one device") if with_entropy else liger(setting, _liger),
        }

    product = 2 * tokens * hidden_size * vocab_size
    work = {FORWARD: Work(flops=product), TRAINING: Work(flops=(3 if trained else 2) * product)}
    return Case(f"{tokens} tokens, {hidden_size} -> {vocab_size}, {what}", setting.dtype, work, build)


def _plain(hidden, weight, target):
    logprobs = torch.log_softmax(widened(hidden @ weight.t()), dim=-1)
    return logprobs.gather(1, target[:, None]).squeeze(1)


def _plain_with_entropy(hidden, weight, target):
    logprobs = torch.log_softmax(widened(hidden @ weight.t()), dim=-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(1, target[:, None]).squeeze(1), entropy


def _liger() -> Provider:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return Provider(
        lambda hidden, weight, target: (
            -liger_fused_linear_cross_entropy(hidden, weight, target, reduction="none", accum_dtype=torch.float32)
        )
    )

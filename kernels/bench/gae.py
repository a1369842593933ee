"""Advantages of the responses of a PPO batch: packed for Keju, padded rows and a loop over steps elsewhere."""

from __future__ import annotations

import torch
from harness.case import FORWARD, Absent, Case, Provider, Setting, Work, draw
from torch.nn.utils.rnn import pad_sequence

from keju.kernels.gae import gae

# Responses, tokens of the longest
SIZES = {"full": (64, 1024), "small": (16, 256), "tiny": (4, 16)}
GAMMA, LAM = 0.99, 0.95


def cases(setting: Setting) -> list[Case]:
    count, longest = SIZES[setting.size]
    setting = setting._replace(dtype=torch.float32)  # advantages are float32 in every precision of the models
    # From a quarter of the longest to all of it
    lengths = [longest // 4 + (longest - longest // 4) * (index + 1) // count for index in range(count)]
    total = sum(lengths)

    def build():
        inputs = {
            name: draw(setting, total, trained=False, seed=seed) for seed, name in enumerate(("rewards", "values"))
        }

        def padded(rewards, values):
            """[responses, steps], 0 beyond the ends"""
            rows = {"rewards": rewards, "values": values}
            return {name: pad_sequence(x.split(lengths), batch_first=True) for name, x in rows.items()}

        def packed(outputs):
            return tuple(torch.cat([row[:size] for row, size in zip(x, lengths, strict=True)]) for x in outputs)

        on_device = torch.tensor(lengths, device=setting.device)
        return inputs, {
            "keju": Provider(lambda rewards, values: gae(rewards, values, on_device, GAMMA, LAM)),
            "torch": Provider(_loop, padded, packed),
            "torch.compile": Absent("it would unroll the loop"),
            "liger": Absent("it has no such op"),
        }

    work = {FORWARD: Work(4 * total * setting.dtype.itemsize)}
    return [Case(f"{count} responses, {total} tokens", setting.dtype, work, build)]


def _loop(rewards, values):
    advantage = following = torch.zeros_like(rewards[:, 0])
    advantages = []
    for step in reversed(range(rewards.shape[1])):
        delta = rewards[:, step] + GAMMA * following - values[:, step]
        advantage = delta + GAMMA * LAM * advantage
        following = values[:, step]
        advantages.append(advantage)
    advantages = torch.stack(advantages[::-1], dim=1)
    return advantages, advantages + values

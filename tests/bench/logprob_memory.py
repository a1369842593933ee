"""DPO over a vocabulary of 130,000 tokens: log-probabilities from chunks of logits against all logits at once.

python tests/bench/logprob_memory.py

Both sides are a step of the same objective on the same trees, forward and backward, and take logits at the same
positions: those that predict an answer's tokens. Each runs in a process of its own, whose peak of resident memory is
taken above what model and data hold. First loss and gradients are the same; then memory and speed are printed, and as
the last line JSON whose `ratio` is the peak of all logits over ours; `speed_ratio` is how much faster ours is.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from ranked_records import ranked_trees
from side_by_side import arguments, ours, tiny_llama

from keju.kernels import linear_logprob as kernel
from keju.models import backbone
from keju.training.objectives.preference import PreferenceObjective
from keju.trees.packed_batch import PackedBatch

SIDES = ("ours", "peer")


def work(side: str, args: argparse.Namespace) -> None:
    """A few steps of one side; prints {"loss", "gradient", "seconds", "peak"}, the peak in MiB."""
    if side == "peer":
        backbone.linear_logprob = kernel.reference  # every logit, their log-softmax, and what is wanted of it
    model = ours(tiny_llama(args)).train()
    trees = ranked_trees(args.prompts, args.answers, args.prompt_length, args.answer_length, args.vocab_size)
    batch, objective = PackedBatch.from_trees(trees), PreferenceObjective(reference_free=True)
    before, seconds = resident(), []
    for _ in range(args.steps):
        model.zero_grad(set_to_none=True)
        start = time.perf_counter()
        loss = objective(model, batch).loss_sum
        loss.backward()
        seconds.append(time.perf_counter() - start)
    gradient = torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10 - before
    found = {"loss": loss.item(), "gradient": gradient.item(), "seconds": min(seconds), "peak": peak}
    print(json.dumps({**found, "positions": len(batch.target)}))


def resident() -> float:
    """MiB"""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    if os.environ.get("KEJU_BENCH_SIDE"):
        work(os.environ["KEJU_BENCH_SIDE"], settings())
        return
    args = settings()
    results: dict[str, list[dict]] = {side: [] for side in SIDES}
    for number in range(args.rounds):
        for side in SIDES:
            command = [sys.executable, __file__, *sys.argv[1:]]
            environment = {**os.environ, "KEJU_BENCH_SIDE": side}
            run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            results[side].append(json.loads(run.stdout.splitlines()[-1]))
            line = results[side][-1]
            print(f"round {number + 1}, {side}: {line['peak']:.0f} MiB, {line['seconds']:.2f} s a step", flush=True)
    first, second = (results[side][0] for side in SIDES)
    print(f"{first['positions']} positions; loss {first['loss']} and {second['loss']}, "
          f"norm of the gradient {first['gradient']} and {second['gradient']}")  # fmt: skip
    for name in ("loss", "gradient"):
        assert abs(first[name] - second[name]) <= 1e-4 * abs(second[name]), f"{name}s differ"
    peak, seconds = (
        {side: statistics.median(line[name] for line in results[side]) for side in SIDES}
        for name in ("peak", "seconds")
    )
    report = {
        "name": "logprob_memory",
        "ours": round(peak["ours"], 1),
        "peer": round(peak["peer"], 1),
        "ratio": round(peak["peer"] / peak["ours"], 2),
        "unit": "MiB",
        "speed_ratio": round(seconds["peer"] / seconds["ours"], 2),
    }
    print(json.dumps(report))


def settings() -> argparse.Namespace:
    return arguments(
        __doc__,
        **{"hidden_size": 256, "layers": 2, "vocab_size": 130000, "steps": 3, "rounds": 3},
        **{"prompts": 4, "answers": 4, "prompt_length": 128, "answer_length": 64},
    )


if __name__ == "__main__":
    main()

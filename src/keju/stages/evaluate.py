"""Benchmarks, zero- and few-shot: C-Eval, MMLU, CLUE."""

from keju.stages.spec import Stage

STAGE = Stage(
    name="evaluate",
    summary=__doc__,
    script="eval_pretrain",
    position=32,
    quickstart=("--max_items", "500"),
    fast=("--max_items", "60"),
)

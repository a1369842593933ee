"""How often a reward model prefers the better of two answers."""

from keju.stages.spec import Stage

STAGE = Stage(
    name="evaluate_reward",
    summary=__doc__,
    script="eval_reward",
    position=33,
    fast=("--max_samples", "60"),
)

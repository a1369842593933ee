"""Rewards of answers."""

from keju.stages.spec import Stage

STAGE = Stage(
    name="score",
    summary=__doc__,
    script="pred_reward",
    position=31,
)

"""Memory of a run on each device, and the command to type."""

from keju.stages.spec import Stage

STAGE = Stage(
    name="plan",
    summary=__doc__,
    script="plan",
    position=14,
)

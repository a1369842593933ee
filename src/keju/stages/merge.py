"""Adapters merged into the model that they were trained on."""

from keju.stages.spec import Stage

STAGE = Stage(
    name="merge",
    summary=__doc__,
    script="merge",
    position=40,
)

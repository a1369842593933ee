"""One example as a stage will learn it, and what is surely wrong with data and model."""

from keju.stages.spec import Stage

STAGE = Stage(
    name="doctor",
    summary=__doc__,
    script="doctor",
    position=13,
)

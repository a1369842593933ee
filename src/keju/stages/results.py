"""What alignment does, over families and seeds, judged by a model that trained none of them."""

from keju.stages.spec import Stage

STAGE = Stage(
    name="results",
    summary=__doc__,
    script="results",
    position=51,
)

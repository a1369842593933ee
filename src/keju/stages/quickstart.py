"""Every stage on the embedded corpus, and one report about all of them."""

from keju.stages.spec import Stage

STAGE = Stage(
    name="quickstart",
    summary=__doc__,
    script="quickstart",
    position=50,
)

"""Records to a file that other toolkits read."""

from keju.stages.spec import Stage

STAGE = Stage(
    name="export",
    summary=__doc__,
    script="export_data",
    position=11,
)

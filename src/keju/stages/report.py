"""Evaluations of several models in one table and on one page."""

from keju.stages.spec import Stage

STAGE = Stage(
    name="report",
    summary=__doc__,
    script="eval_report",
    position=34,
)

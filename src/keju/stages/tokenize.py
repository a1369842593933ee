"""Tokens of record files on disk, ahead of a stage, with all cores."""

from keju.stages.spec import Stage

STAGE = Stage(
    name="tokenize",
    summary=__doc__,
    script="tokenize_data",
    position=12,
)

"""A checkpoint folder as another: safetensors, shards, architectures, more tokens."""

from keju.stages.spec import Stage

STAGE = Stage(
    name="convert",
    summary=__doc__,
    script="convert",
    position=41,
)

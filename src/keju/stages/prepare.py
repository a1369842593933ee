"""Raw corpora to records, in splits that share no text, and a small vocabulary."""

from keju.stages.spec import Stage

STAGE = Stage(
    name="prepare",
    summary=__doc__,
    script="prepare_data",
    position=10,
    aliases=("data_prepare",),
    fast=("--max_idioms", "2500", "--vocab_size", "3000"),
)

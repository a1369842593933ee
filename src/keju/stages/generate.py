"""Written answers to the prompts of a record file, with ROUGE and BLEU."""

from keju.stages.spec import Stage

STAGE = Stage(
    name="generate",
    summary=__doc__,
    script="pred_pretrain",
    position=30,
    aliases=("predict",),
    quickstart=("--max_samples", "64"),
    fast=("--max_samples", "16"),
)

"""Next-token training on text; packed documents do not see each other."""

from keju.stages.spec import Stage

STAGE = Stage(
    name="pretrain",
    summary=__doc__,
    script="pretrain",
    position=20,
    form="text",
    train_file="pretrain_train.jsonl",
    eval_file="pretrain_dev.jsonl",
    objective="language_model:LanguageModelObjective",
    plan="objective",
    folder="pretrain",
    title="Pretraining",
    purpose="The model reads raw text and learns to predict the next token.",
    quickstart=("--max_eval_samples", "200"),
    fast=("--max_steps", "40", "--max_eval_samples", "50"),
)

"""Supervised fine-tuning on answers, chats and instructions."""

from keju.stages.spec import Stage

STAGE = Stage(
    name="sft",
    summary=__doc__,
    script="train_sft",
    position=21,
    form="sft",
    train_file="ranked_train.jsonl",
    eval_file="ranked_dev.jsonl",
    objective="language_model:LanguageModelObjective",
    plan="objective",
    folder="sft",
    title="Supervised fine-tuning",
    purpose="The model learns to answer: only the tokens of answers are trained.",
    quickstart=("--max_train_samples", "8000", "--max_eval_samples", "200"),
    fast=("--max_steps", "15", "--max_eval_samples", "50"),
)

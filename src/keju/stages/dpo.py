"""Preferences learned from ranked answers, without a reward model: DPO and its relatives."""

from keju.stages.spec import Stage

STAGE = Stage(
    name="dpo",
    summary=__doc__,
    script="train_dpo",
    position=23,
    form="ranked",
    train_file="ranked_train.jsonl",
    eval_file="ranked_dev.jsonl",
    objective="preference:PreferenceObjective",
    dropout="none",
    plan="objective",
    folder="dpo",
    title="DPO",
    purpose="The model learns from the same pairs directly, without a reward model.",
    quickstart=("--max_train_samples", "2000", "--max_eval_samples", "200"),
    fast=("--max_steps", "10", "--max_train_samples", "200", "--max_eval_samples", "50"),
)

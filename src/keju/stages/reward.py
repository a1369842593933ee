"""A reward model from ranked answers."""

from keju.stages.spec import Stage

STAGE = Stage(
    name="reward",
    summary=__doc__,
    script="train_reward",
    position=22,
    form="ranked",
    train_file="ranked_train.jsonl",
    eval_file="ranked_dev.jsonl",
    objective="reward:RewardObjective",
    scalar=True,
    dropout="none",
    plan="objective",
    folder="reward",
    title="Reward model",
    purpose="A copy of the model learns to score answers, from pairs of a better and a worse one.",
    quickstart=("--max_train_samples", "16000", "--max_eval_samples", "200"),
    fast=("--max_steps", "20", "--max_eval_samples", "50"),
)

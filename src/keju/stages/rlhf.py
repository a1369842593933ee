"""PPO: answers sampled, scored by a reward model, made likelier or less likely."""

from keju.stages.spec import Stage

STAGE = Stage(
    name="rlhf",
    summary=__doc__,
    script="train_rlhf",
    position=25,
    aliases=("ppo",),
    form="prompt",
    train_file="prompts_train.jsonl",
    eval_file="ranked_dev.jsonl",
    dropout="none",
    plan="policy",
    folder="ppo",
    title="PPO",
    purpose="The model writes answers, the reward model scores them, and better ones become likelier.",
    quickstart=("--max_eval_samples", "64"),
    fast=("--max_steps", "3", "--max_eval_samples", "16"),
)

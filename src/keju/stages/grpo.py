"""GRPO: as PPO, with the other answers to a prompt in the place of a critic."""

from keju.stages.spec import Stage

STAGE = Stage(
    name="grpo",
    summary=__doc__,
    script="train_grpo",
    position=26,
    form="prompt",
    train_file="prompts_train.jsonl",
    eval_file="ranked_dev.jsonl",
    dropout="none",
)

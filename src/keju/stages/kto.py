"""Preferences learned from answers that are good or bad by themselves, without pairs."""

from keju.stages.spec import Stage

STAGE = Stage(
    name="kto",
    summary=__doc__,
    script="train_dpo",
    position=24,
    flags=("--loss_type", "kto"),
    form="kto",
    train_file="ranked_train.jsonl",
    eval_file="ranked_dev.jsonl",
    objective="kto:KTOObjective",
    dropout="none",
)

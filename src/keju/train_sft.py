"""Supervised fine-tuning: the loss of answers only (each assistant turn of a chat), their end token learned.

Of ranked answers the best one is the answer.

python -m keju.train_sft --model_name_or_path runs/pretrain --data_dir runs/data/idiom --output_dir runs/sft
"""

from __future__ import annotations

from dataclasses import dataclass, field

from keju.training.arguments import (
    ChatTrainingArguments,
    DataArguments,
    StageTrainingArguments,
    StartArguments,
    parse_arguments,
)
from keju.training.launch import run_stage
from keju.training.ranges import NonNegativeFloat
from keju.training.stage import train_language_model


@dataclass
class SFTDataArguments(ChatTrainingArguments, DataArguments):
    train_filename: str = field(default="ranked_train.jsonl", metadata={"help": "Ranked, chat or instruction records."})
    eval_filename: str | None = field(default="ranked_dev.jsonl", metadata={"help": "Held-out records of that kind."})


@dataclass
class SFTArguments(StageTrainingArguments):
    learning_rate: NonNegativeFloat = field(default=2e-5, metadata={"help": "Peak learning rate."})


def main() -> None:
    model_args, data, training = parse_arguments(StartArguments, SFTDataArguments, SFTArguments, description=__doc__)
    train_language_model("sft", "sft", model_args, data, training)


if __name__ == "__main__":
    run_stage(main)

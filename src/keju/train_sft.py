"""Supervised fine-tuning: the loss of answers only (each assistant turn of a chat), their end token learned.

Of ranked answers the best one is the answer.

python -m keju.train_sft --model_name_or_path runs/pretrain --data_dir runs/data/idiom --output_dir runs/sft
"""

from __future__ import annotations

from dataclasses import dataclass, field

from keju.stages.sft import STAGE
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
    train_filename: str = field(default=STAGE.train_file, metadata={"help": "Ranked, chat or instruction records."})
    eval_filename: str | None = field(default=STAGE.eval_file, metadata={"help": "Held-out records of that kind."})


@dataclass
class SFTArguments(StageTrainingArguments):
    learning_rate: NonNegativeFloat = field(default=2e-5, metadata={"help": "Peak learning rate."})


def main() -> None:
    model_args, data, training = parse_arguments(StartArguments, SFTDataArguments, SFTArguments, description=__doc__)
    train_language_model(STAGE, model_args, data, training)


if __name__ == "__main__":
    run_stage(main)

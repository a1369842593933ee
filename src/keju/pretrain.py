"""Pretrain a causal language model on text records; packed documents do not see each other.

python -m keju.pretrain --model_name_or_path llama-tiny --tokenizer_name runs/data/idiom/tokenizer \
    --data_dir runs/data/idiom --output_dir runs/pretrain
"""

from __future__ import annotations

from dataclasses import dataclass, field

from keju.stages.pretrain import STAGE
from keju.training.arguments import DataArguments, StageTrainingArguments, StartArguments, parse_arguments
from keju.training.launch import run_stage
from keju.training.ranges import Fraction, NonNegativeFloat
from keju.training.stage import train_language_model


@dataclass
class PretrainDataArguments(DataArguments):
    train_filename: str = field(default=STAGE.train_file, metadata={"help": "Text records, in --data_dir."})
    eval_filename: str | None = field(default=STAGE.eval_file, metadata={"help": "Held-out text records."})


@dataclass
class PretrainArguments(StageTrainingArguments):
    learning_rate: NonNegativeFloat = field(default=3e-4, metadata={"help": "Peak learning rate."})
    weight_decay: NonNegativeFloat = field(default=0.1, metadata={"help": "Decoupled weight decay."})
    adam_beta2: Fraction = field(default=0.95, metadata={"help": "Second moment decay of Adam."})


def main() -> None:
    model_args, data, training = parse_arguments(
        StartArguments, PretrainDataArguments, PretrainArguments, description=__doc__
    )
    train_language_model(STAGE, model_args, data, training)


if __name__ == "__main__":
    run_stage(main)

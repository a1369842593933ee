"""Supervised fine-tuning: the loss of answers only (each assistant turn of a chat), their end token learned.

Of ranked answers the best one is the answer.

python -m keju.train_sft --model_name_or_path runs/pretrain --data_dir runs/data/idiom --output_dir runs/sft
"""

from __future__ import annotations

from dataclasses import dataclass, field

from keju.models.loading import load_causal_lm
from keju.training.arguments import DataArguments, ModelArguments, StageTrainingArguments, parse_arguments
from keju.training.launch import run_stage
from keju.training.objectives.language_model import LanguageModelObjective
from keju.training.stage import add_adapters, inspect, open_run, prepare, read_trees, train


@dataclass
class SFTDataArguments(DataArguments):
    train_filename: str = field(default="ranked_train.jsonl", metadata={"help": "Ranked, chat or instruction records."})
    eval_filename: str | None = field(default="ranked_dev.jsonl", metadata={"help": "Held-out records of that kind."})


@dataclass
class SFTArguments(StageTrainingArguments):
    learning_rate: float = field(default=2e-5, metadata={"help": "Peak learning rate."})


def main() -> None:
    model_args, data, training = parse_arguments(ModelArguments, SFTDataArguments, SFTArguments, description=__doc__)
    folder = open_run("sft", model_args, data, training)
    tokenizer, encoder = prepare(model_args, data, training)
    model = load_causal_lm(
        model_args.model_name_or_path,
        dtype=model_args.dtype,
        tokenizer=tokenizer,
        from_scratch=model_args.from_scratch,
        config_overrides=model_args.parsed_overrides(),
    )
    records = read_trees(
        data, data.train_filename, encoder, "sft", flag="--train_filename", max_samples=data.max_train_samples
    )
    held_out = data.eval_filename and read_trees(
        data, data.eval_filename, encoder, "sft", flag="--eval_filename", max_samples=data.max_eval_samples
    )
    inspect(records, tokenizer, model, form="sft")
    model = add_adapters(model, model_args, task_type="CAUSAL_LM")
    outcome = train(
        model,
        LanguageModelObjective(),
        tokenizer,
        records,
        held_out or None,
        data=data,
        training=training,
        folder=folder,
    )
    folder.finish(**outcome.summary)


if __name__ == "__main__":
    run_stage(main)

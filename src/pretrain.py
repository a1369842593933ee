"""Pretrain a causal language model on text records; packed documents do not see each other.

python -m keju.pretrain --model_name_or_path llama-tiny --tokenizer_name runs/data/idiom/tokenizer \
    --data_dir runs/data/idiom --output_dir runs/pretrain
"""

from __future__ import annotations

from dataclasses import dataclass, field

from keju.models.loading import load_causal_lm
from keju.training.arguments import DataArguments, ModelArguments, StageTrainingArguments, parse_arguments
from keju.training.launch import run_stage
from keju.training.objectives.language_model import LanguageModelObjective
from keju.training.stage import add_adapters, inspect, open_run, prepare, read_trees, train


@dataclass
class PretrainDataArguments(DataArguments):
    train_filename: str = field(default="pretrain_train.jsonl", metadata={"help": "Text records, in --data_dir."})
    eval_filename: str | None = field(default="pretrain_dev.jsonl", metadata={"help": "Held-out text records."})


@dataclass
class PretrainArguments(StageTrainingArguments):
    learning_rate: float = field(default=3e-4, metadata={"help": "Peak learning rate."})
    weight_decay: float = field(default=0.1, metadata={"help": "Decoupled weight decay."})
    adam_beta2: float = field(default=0.95, metadata={"help": "Second moment decay of Adam."})


def main() -> None:
    model_args, data, training = parse_arguments(
        ModelArguments, PretrainDataArguments, PretrainArguments, description=__doc__
    )
    folder = open_run("pretrain", model_args, data, training)
    tokenizer, encoder = prepare(model_args, data, training)
    model = load_causal_lm(
        model_args.model_name_or_path,
        dtype=model_args.dtype,
        tokenizer=tokenizer,
        from_scratch=model_args.from_scratch,
        config_overrides=model_args.parsed_overrides(),
    )
    records = read_trees(
        data, data.train_filename, encoder, "text", flag="--train_filename", max_samples=data.max_train_samples
    )
    held_out = data.eval_filename and read_trees(
        data, data.eval_filename, encoder, "text", flag="--eval_filename", max_samples=data.max_eval_samples
    )
    inspect(records, tokenizer, model, form="text")
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

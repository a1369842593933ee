"""Train a reward model on ranked answers: K answers are one tree, and all their ordered pairs are compared.

python -m keju.train_reward --model_name_or_path runs/sft --data_dir runs/data/idiom --output_dir runs/reward
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from keju.encoding.token_store import totals_of
from keju.errors import UserError
from keju.models.loading import load_scalar_model
from keju.records.folds import Fold
from keju.stages.reward import STAGE
from keju.training.answer_scores import answer_rewards, by_score
from keju.training.arguments import (
    DataArguments,
    ModelArguments,
    StageTrainingArguments,
    ThinkingArguments,
    parse_arguments,
)
from keju.training.dropout import DISABLE_DROPOUT_HELP, dropout_of
from keju.training.launch import run_stage
from keju.training.objectives.reward import RewardObjective
from keju.training.plots import plot_histograms
from keju.training.ranges import LabelSmoothing, NonNegativeFloat
from keju.training.stage import (
    add_adapters,
    check_best_metric,
    inspect,
    load_start,
    num_shared,
    open_run,
    prepare,
    read_records,
    train,
)


@dataclass
class RewardDataArguments(ThinkingArguments, DataArguments):
    train_filename: str = field(default=STAGE.train_file, metadata={"help": "Ranked records, in --data_dir."})
    eval_filename: str | None = field(default=STAGE.eval_file, metadata={"help": "Held-out ranked records."})
    fold: str = field(
        default="1/1",
        metadata={"help": "Train on this part of the prompts, as 1/2; a judge of RLHF is trained on another, 2/2."},
    )

    def __post_init__(self) -> None:
        Fold(self.fold)


@dataclass
class RewardArguments(StageTrainingArguments):
    learning_rate: NonNegativeFloat = field(default=1e-5, metadata={"help": "Peak learning rate."})
    disable_dropout: bool = field(default=True, metadata={"help": DISABLE_DROPOUT_HELP})
    loss_type: Literal["last", "span", "plackett_luce"] = field(
        default="last",
        metadata={
            "help": "Compare scores at the answers' last tokens, or at every token from where they differ on, or take "
            "the ranking of a prompt's answers as a whole."
        },
    )
    margin_coef: NonNegativeFloat = field(
        default=0.0, metadata={"help": "Rewards must differ by so much times the difference of the records' scores."}
    )
    label_smoothing: LabelSmoothing = field(
        default=0.0, metadata={"help": "Chance that a pair is the wrong way round."}
    )
    center_rewards_coefficient: NonNegativeFloat = field(
        default=0.0, metadata={"help": "Weight of (better + worse)^2: keeps rewards around 0 (published: 0.01)."}
    )


def main() -> None:
    model_args, data, training = parse_arguments(
        ModelArguments, RewardDataArguments, RewardArguments, description=__doc__
    )
    objective = RewardObjective(
        training.loss_type,
        margin_coef=training.margin_coef,
        label_smoothing=training.label_smoothing,
        center_coef=training.center_rewards_coefficient,
    )
    check_best_metric(training, objective)
    if model_args.adapters == "stack":
        raise UserError("--adapters stack: the head of a reward model is saved whole; take --adapters merge")
    folder = open_run(STAGE.name, model_args, data, training)
    tokenizer, encoder = prepare(folder, model_args, data, training)
    records, held_out = read_records(folder, model_args, data, encoder, STAGE.form, fold=Fold(data.fold))
    model, model_args = load_start(load_scalar_model, folder, model_args, tokenizer, training)
    model.config.pad_token_id = tokenizer.pad_token_id
    inspect(records, tokenizer, model, form=STAGE.form)
    print(f"Trees hold {num_shared(records.trees):.2f} times fewer tokens than rows of prompt + answer would.")
    model = add_adapters(model, model_args, task_type="SEQ_CLS")
    outcome = train(
        model,
        objective,
        tokenizer,
        records,
        held_out,
        data=data,
        training=training,
        folder=folder,
        loraplus_lr_ratio=model_args.adapter_lr_ratio,
        dropout=dropout_of(training.disable_dropout, model_args.lora_dropout),
    )
    if held_out:
        outcome.summary["heldout_accuracy"] = outcome.summary.pop("eval_accuracy")
        outcome.summary["heldout_pairs"] = totals_of(held_out.trees).num_pairs
        rewards = answer_rewards(outcome.trainer.model, held_out.trees, token_budget=data.token_budget)
        groups: dict[str, list[float]] = {}
        for score, reward in sorted(by_score(held_out.trees, rewards)):
            groups.setdefault(f"score {score:g}", []).append(reward)
        if folder.is_main:
            plot_histograms(groups, folder.path / "reward_distribution.png", title="Rewards", xlabel="reward")
    folder.finish(**outcome.summary)


if __name__ == "__main__":
    run_stage(main)

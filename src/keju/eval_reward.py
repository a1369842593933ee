"""Evaluate a reward model: how often it prefers the better of two ranked answers that it has never seen.

python -m keju.eval_reward --model_name_or_path runs/reward --data_dir runs/data/idiom --output_dir runs/eval_reward
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from keju.encoding.dataset import EncodedRecords, encode_records
from keju.encoding.encoder import Encoder
from keju.encoding.token_store import totals_of
from keju.eval.reward_figures import RankedAnswers, reward_figures, rewards_by_score
from keju.models.architecture import check_row
from keju.models.loading import load_scalar_model
from keju.records.reading import first_records, read_records
from keju.records.record import RankedRecord
from keju.records.writing import write_json, write_jsonl
from keju.training.answer_scores import answer_rewards
from keju.training.arguments import BASE_MODEL_HELP, ThinkingArguments, parse_arguments
from keju.training.launch import run_stage
from keju.training.own_tokenizer import tokenizer_of
from keju.training.plots import plot_histograms
from keju.training.progress import Progress
from keju.training.ranges import PositiveInt
from keju.training.run_folder import RunFolder
from keju.training.tree_guard import verify_trees


@dataclass
class EvalRewardArguments(ThinkingArguments):
    """What is evaluated, and on which records."""

    model_name_or_path: str = field(metadata={"help": "Folder of a reward model."})
    data_dir: str = field(metadata={"help": "Folder of the record files."})
    output_dir: str = field(metadata={"help": "Folder for results.json, rewards and plots."})
    test_filename: str = field(default="ranked_test.jsonl", metadata={"help": "Held-out ranked records."})
    base_model: str | None = field(default=None, metadata={"help": BASE_MODEL_HELP})
    tokenizer_name: str | None = field(default=None, metadata={"help": "Tokenizer, where it is not the model's own."})
    max_length: PositiveInt = field(default=512, metadata={"help": "Longest record in tokens (prompt and one answer)."})
    token_budget: PositiveInt = field(default=4096, metadata={"help": "Tokens of one packed row: the unit of memory."})
    max_samples: PositiveInt | None = field(default=None, metadata={"help": "Use at most so many records."})
    on_bad_line: Literal["error", "skip"] = field(default="error", metadata={"help": "What a bad line does."})
    dtype: Literal["float32", "bfloat16", "float16"] = field(default="float32", metadata={"help": "Precision."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Delete the run that --output_dir holds."})


def main() -> None:
    (args,) = parse_arguments(EvalRewardArguments, description=__doc__)
    folder = RunFolder(args.output_dir, "eval_reward", arguments=[args], overwrite=args.overwrite_output_dir)
    tokenizer = tokenizer_of(args)
    model = load_scalar_model(
        args.model_name_or_path, dtype=args.dtype, tokenizer=tokenizer, require_head=True, base=args.base_model
    )
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    encoded = read_ranked(args, Encoder(tokenizer, args.max_length, chats=args.chat_settings()))
    check_row(model.config, totals_of(encoded.trees).deepest)
    verify_trees(model)

    with Progress(len(encoded), "score answers", unit="prompts") as bar:
        rewards = answer_rewards(model, encoded.trees, token_budget=args.token_budget, on_tree=bar.advance)
    records = [
        RankedAnswers(tuple(branch.values["score"] for branch in tree.branches), tuple(numbers))
        for tree, numbers in zip(encoded.trees, rewards, strict=True)
    ]
    figures = {"model": args.model_name_or_path, **reward_figures(records), "num_left_out": len(encoded.skipped)}
    folder.begin()
    write_json(folder.path / "results.json", figures)
    write_jsonl(
        folder.path / "rewards.jsonl",
        (
            {"where": where, "scores": record.scores, "rewards": record.rewards}
            for where, record in zip(encoded.where, records, strict=True)
        ),
    )
    groups = {f"score {score}": values for score, values in rewards_by_score(records).items()}
    plot_histograms(groups, folder.path / "reward_distribution.png", title="Rewards by score", xlabel="reward")
    margins = [pair.margin for record in records for pair in record.pairs()]
    plot_histograms(
        {"pairs": margins}, folder.path / "margins.png", title="Margins", xlabel="better minus worse answer"
    )
    show(figures)
    folder.finish(heldout_accuracy=figures["accuracy"], **{name: figures[name] for name in ("loss", "num_pairs")})


def read_ranked(args: EvalRewardArguments, encoder: Encoder) -> EncodedRecords:
    """The test records as trees; says which were left out."""
    path = Path(args.data_dir).expanduser() / args.test_filename
    file = read_records(path, on_bad_line=args.on_bad_line, kinds=(RankedRecord,))
    records = first_records(file, args.max_samples, "--max_samples")
    with Progress(len(records), f"encode {path.name}", unit="records") as bar:
        encoded = encode_records(records, encoder, "ranked", on_bad_line=args.on_bad_line, on_record=bar.advance)
    for reason in encoded.skipped[:3]:
        print(f"left out: {reason}")
    return encoded


def show(figures: dict[str, Any]) -> None:
    """Prints accuracies with their intervals, and the rewards of each score."""
    table = Table(title=figures["model"], title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("", "accuracy", "95%", "chance", "of"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, key, count in (
        ("better of two answers", "accuracy", f"{figures['num_pairs']} pairs"),
        ("best answer first", "best_first", f"{figures['num_prompts']} prompts"),
    ):
        low, high = figures["interval" if key == "accuracy" else "best_first_interval"]
        chance = figures["chance" if key == "accuracy" else "best_first_chance"]
        table.add_row(name, f"{figures[key]:.1%}", f"{low:.1%}-{high:.1%}", f"{chance:.1%}", count)
    for name, group in figures["accuracy_by_scores"].items():
        table.add_row(f"  score {name}", f"{group['accuracy']:.1%}", "", "50.0%", f"{group['count']} pairs")
    Console().print(table)
    for score, spread in figures["rewards_by_score"].items():
        print(f"score {score}: reward {spread['mean']:.3f} +- {spread['std']:.3f} ({spread['count']} answers)")
    margin = figures["margin"]
    print(f"margin {margin['mean']:.3f} +- {margin['std']:.3f}, loss {figures['loss']:.4f}")


if __name__ == "__main__":
    run_stage(main)

"""Give answers the rewards of a reward model: rows in, the same rows with rewards out.

python -m keju.pred_reward --model_name_or_path runs/reward --data_dir runs/pred --test_filename predictions.jsonl \
    --output_dir runs/pred_reward
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, Literal

import torch

from keju.encoding.encoder import Encoder
from keju.encoding.token_store import totals_of
from keju.errors import UserError
from keju.models.architecture import check_row
from keju.models.loading import load_scalar_model
from keju.records.formats import detect
from keju.records.reading import iterate_rows
from keju.records.record import Answer, ChatRecord, RankedRecord
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
from keju.trees.segment import Segment

CONTEXT = ("prompt", "system", "history", "tools", "prefix")  # what answers answer, where a row has them by themselves


@dataclass
class PredRewardArguments(ThinkingArguments):
    """Which answers are scored."""

    model_name_or_path: str = field(metadata={"help": "Folder of a reward model."})
    data_dir: str = field(metadata={"help": "Folder of the file."})
    output_dir: str = field(metadata={"help": "Folder for rewards.jsonl and results.json."})
    test_filename: str = field(
        default="ranked_test.jsonl",
        metadata={"help": "JSON lines: ranked or chat records, prompt + answer, or the predictions of pred_pretrain."},
    )
    base_model: str | None = field(default=None, metadata={"help": BASE_MODEL_HELP})
    tokenizer_name: str | None = field(default=None, metadata={"help": "Tokenizer, where it is not the model's own."})
    max_length: PositiveInt = field(default=512, metadata={"help": "Longest prompt with an answer, in tokens."})
    on_long: Literal["error", "truncate"] = field(
        default="error",
        metadata={"help": "A longer one stops the run; or prompts lose their beginning, answers their end."},
    )
    token_budget: PositiveInt = field(default=4096, metadata={"help": "Tokens of one packed row: the unit of memory."})
    dtype: Literal["float32", "bfloat16", "float16"] = field(default="float32", metadata={"help": "Precision."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Delete the run that --output_dir holds."})


def main() -> None:
    (args,) = parse_arguments(PredRewardArguments, description=__doc__)
    folder = RunFolder(args.output_dir, "pred_reward", arguments=[args], overwrite=args.overwrite_output_dir)
    tokenizer = tokenizer_of(args)
    model = load_scalar_model(
        args.model_name_or_path, dtype=args.dtype, tokenizer=tokenizer, require_head=True, base=args.base_model
    )
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    verify_trees(model)
    located = list(iterate_rows(Path(args.data_dir).expanduser() / args.test_filename))
    records = [ranked_record(fields, where) for where, fields in located]
    encoder = Encoder(tokenizer, args.max_length, on_long=args.on_long, chats=args.chat_settings())
    trees, owners = share_prompts([encoder.ranked_tree(record) for record in records], args.token_budget)
    check_row(model.config, totals_of(trees).deepest)
    with Progress(len(trees), "score answers", unit="prompts") as bar:
        scored = answer_rewards(model, trees, token_budget=args.token_budget, on_tree=bar.advance)
    rewards: list[list[float]] = [[] for _ in records]
    for members, numbers in zip(owners, scored, strict=True):
        for index, number in zip(members, numbers, strict=True):
            rewards[index].append(number)
    folder.begin()
    write_jsonl(
        folder.path / "rewards.jsonl",
        ({**fields, "rewards": numbers} for (_, fields), numbers in zip(located, rewards, strict=True)),
    )
    everything = [number for numbers in rewards for number in numbers]
    figures = {
        "num_answers": len(everything),
        "num_prompts": len(trees),
        "mean": fmean(everything),
        "std": pstdev(everything),
    }
    write_json(folder.path / "results.json", {"model": args.model_name_or_path, **figures})
    plot_histograms({"answers": everything}, folder.path / "reward_distribution.png", title="Rewards", xlabel="reward")
    print(f"{len(everything)} answers to {len(trees)} prompts: reward {figures['mean']:.3f} +- {figures['std']:.3f}")
    folder.finish(**figures)


def ranked_record(row: Mapping[str, Any], where: str) -> RankedRecord:
    """A row as a prompt with its answers; their scores, where there are any, do not matter here."""
    texts = row.get("responses", [row["answer"]] if "answer" in row else None)
    try:
        if texts is None:
            record = detect(row)
        elif not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise UserError('"answer" must be a text, "responses" a list of texts')
        else:
            # An empty answer is a bad line of training data, but a model may well have given one.
            context = {name: row[name] for name in CONTEXT if name in row}
            record = detect({**context, "answers": [{"answer": "-", "score": 0}]})
            record = replace(record, answers=tuple(Answer(text, 0.0) for text in texts))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    if isinstance(record, ChatRecord) and record.messages[-1].role == "assistant":
        *messages, reply = record.messages
        answer = Answer(reply.content, 0.0, reasoning=reply.reasoning)
        record = RankedRecord(tuple(messages), (answer,), tools=record.tools)
    if not isinstance(record, RankedRecord):
        raise UserError(f'{where}: there is no answer to score ("answer", "responses", "answers" or an assistant turn)')
    return replace(record, where=where)


def share_prompts(trees: Sequence[Segment], token_budget: int) -> tuple[list[Segment], list[list[int]]]:
    """(trees, for each branch the number of the given tree it comes from).

    Equal prompts become one tree, whatever rows they come from, as long as it fits the budget.
    """
    shared: list[Segment] = []
    owners: list[list[int]] = []
    latest: dict[tuple[int, ...], int] = {}
    for index, tree in enumerate(trees):
        place = latest.get(tuple(tree.tokens))
        if place is None or shared[place].num_tokens + tree.num_tokens - len(tree.tokens) > token_budget:
            place = latest[tuple(tree.tokens)] = len(shared)
            shared.append(Segment(tree.tokens))
            owners.append([])
        shared[place].branches += tree.branches
        owners[place] += [index] * len(tree.branches)
    return shared, owners


if __name__ == "__main__":
    run_stage(main)

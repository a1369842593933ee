"""SFT: packed trees against TRL's SFTTrainer on padded rows, records of real, mixed lengths.

python tests/bench/sft.py
"""

from __future__ import annotations

import json
import random
import sys

from datasets import Dataset
from side_by_side import (
    arguments,
    common_settings,
    compare,
    ours,
    shared_folder,
    tiny_llama,
    with_attention,
    word_tokenizer,
)
from transformers import TrainingArguments
from trl import SFTConfig, SFTTrainer

from keju.training.objectives.language_model import LanguageModelObjective
from keju.training.tree_trainer import TreeTrainer
from keju.trees.segment import Segment

RECORDS = "data/sft/alpaca_zh_demo.json"


def lengths(count: int, longest: int) -> list[tuple[int, int]]:
    """(prompt, answer) lengths in characters of real instruction records; a Chinese character is about one token."""
    path = shared_folder() / RECORDS
    if not path.exists():
        sys.exit(f"error: {path} is absent; the lengths of its records are what this benchmark is about")
    rows = json.loads(path.read_text(encoding="utf-8"))
    random.Random(0).shuffle(rows)
    pairs = [(len(row["instruction"]) + len(row["input"]) + 1, len(row["output"]) + 1) for row in rows if row["output"]]
    return [(prompt, answer) for prompt, answer in pairs if prompt + answer <= longest][:count]


def main() -> None:
    args = arguments(__doc__, records=16, max_length=512)
    rng = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [rng.randrange(4, args.vocab_size) for _ in range(count)]

    trees = [
        Segment([1, *tokens(prompt - 1)], branches=[Segment([*tokens(answer - 1), 2], trained=True)])
        for prompt, answer in lengths(args.records, args.max_length)
    ]
    rows = Dataset.from_list(
        [
            {
                "input_ids": [*tree.tokens, *tree.branches[0].tokens],
                "completion_mask": [0] * len(tree.tokens) + [1] * len(tree.branches[0].tokens),
            }
            for tree in trees
        ]
    )
    tokenizer = word_tokenizer(args.vocab_size)
    useful = sum(tree.num_tokens for tree in trees)
    longest = max(tree.num_tokens for tree in trees)

    def build_ours(folder, steps):
        settings = TrainingArguments(per_device_train_batch_size=len(trees), **common_settings(folder, steps))
        return TreeTrainer(ours(tiny_llama(args)), LanguageModelObjective(), settings, trees, token_budget=useful)

    def build_peer(folder, steps):
        settings = SFTConfig(
            per_device_train_batch_size=len(trees),
            gradient_checkpointing=False,
            completion_only_loss=True,
            max_length=None,
            **common_settings(folder, steps),
        )
        model = with_attention(tiny_llama(args), "sdpa")
        return SFTTrainer(model, args=settings, train_dataset=rows, processing_class=tokenizer)

    print(
        f"{len(trees)} records a step, {useful} tokens; padded to the longest of {longest}: {longest * len(trees)}"
        f" ({longest * len(trees) / useful:.2f}x)"
    )
    compare("sft", build_ours, build_peer, items_per_step=useful, unit="useful tokens/s", args=args)


if __name__ == "__main__":
    main()

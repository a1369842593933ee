"""The records of the reward and DPO benchmarks: random ids, K ranked answers a prompt, as trees and as pairs."""

from __future__ import annotations

import random

from datasets import Dataset

from keju.trees.segment import Segment


def ranked_trees(prompts: int, answers: int, prompt_length: int, answer_length: int, vocab_size: int) -> list[Segment]:
    rng = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [rng.randrange(4, vocab_size) for _ in range(count)]

    return [
        Segment(
            [1, *tokens(prompt_length - 1)],
            branches=[
                Segment([*tokens(answer_length - 1), 2], trained=True, values={"score": float(-rank)})
                for rank in range(answers)
            ],
        )
        for _ in range(prompts)
    ]


def ordered_pairs(tree: Segment) -> list[tuple[list[int], list[int]]]:
    return [
        (list(better.tokens), list(worse.tokens))
        for better in tree.branches
        for worse in tree.branches
        if better.values["score"] > worse.values["score"]
    ]


def pairs_of_ids(trees: list[Segment]) -> Dataset:
    """Every ordered pair as a row of ids, the prompt inside both answers: what RewardTrainer takes."""
    return Dataset.from_list(
        [
            {"chosen_ids": [*tree.tokens, *better], "rejected_ids": [*tree.tokens, *worse]}
            for tree in trees
            for better, worse in ordered_pairs(tree)
        ]
    )


def pairs_of_text(trees: list[Segment]) -> Dataset:
    """The same as text of `word_tokenizer`'s words, without the end token, which DPOTrainer appends."""

    def text(ids: list[int]) -> str:
        return "".join(" <s>" if token == 1 else f" t{token}" for token in ids)

    return Dataset.from_list(
        [
            {"prompt": text(list(tree.tokens)), "chosen": text(better[:-1]), "rejected": text(worse[:-1])}
            for tree in trees
            for better, worse in ordered_pairs(tree)
        ]
    )

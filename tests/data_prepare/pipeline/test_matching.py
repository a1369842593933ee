"""Duplicates and shared texts, against comparing everything with everything."""

from __future__ import annotations

import random

import numpy as np
import pytest

from keju.data_prepare.corpus import Item
from keju.data_prepare.pipeline.matching import EDGE, duplicate_pairs, in_two_splits, to_remove
from keju.data_prepare.pipeline.plan import SPLITS
from keju.data_prepare.pipeline.signatures import (
    SPLIT_SHIFT,
    TEXT,
    bands,
    by_bucket,
    compared_text,
    similarity,
    text_hashes,
)

CHARACTERS = [chr(code) for code in range(0x4E00, 0x4E00 + 3000)]
THRESHOLD = 0.8


def key_of(number: int, split: str) -> int:
    return SPLITS.index(split) << SPLIT_SHIFT | number


def text_item(text: str) -> Item:
    return Item({"text": text}, "file:1", "group")


def corpus_with_edits(rng: random.Random, count: int) -> list[str]:
    """Texts, some of them again, whole or with a few other characters."""
    texts = ["".join(rng.choices(CHARACTERS, k=rng.randint(60, 120))) for _ in range(count)]
    for _ in range(count // 2):
        text = list(rng.choice(texts))
        for _ in range(rng.choice((0, 1, 2, 12))):
            text[rng.randrange(len(text))] = rng.choice(CHARACTERS)
        texts.append("".join(text))
    rng.shuffle(texts)
    return texts


def found_in(texts: list[str], splits: list[str], num_buckets: int) -> np.ndarray:
    items = [text_item(text) for text in texts]
    keys = [key_of(number, split) for number, split in enumerate(splits)]
    place = {key: number for number, key in enumerate(keys)}
    entries, begins = by_bucket(bands(items, keys, near=True), num_buckets)
    pairs = [
        duplicate_pairs(
            entries[begins[bucket] : begins[bucket + 1]],
            lambda one, other: similarity(texts[place[one]], texts[place[other]]) >= THRESHOLD,
        )
        for bucket in range(num_buckets)
    ]
    return to_remove(np.concatenate(pairs))


@pytest.mark.parametrize("num_buckets", [1, 7])
def test_duplicates_are_those_of_comparing_all_with_all(num_buckets):
    texts = corpus_with_edits(random.Random(0), 120)
    removed = found_in(texts, ["train"] * len(texts), num_buckets)
    groups = list(range(len(texts)))  # each takes the number of the first text that it is like, directly or not
    for number, text in enumerate(texts):
        for before in range(number):
            if similarity(text, texts[before]) >= THRESHOLD:
                one, other = sorted((groups[number], groups[before]))
                groups = [one if group == other else group for group in groups]
    expected = {(key_of(number, "train"), key_of(group, "train")) for number, group in enumerate(groups)}
    expected = {(key, kept) for key, kept in expected if key != kept}
    assert len(expected) > 30
    assert {(key, kept) for key, kept, _ in removed.tolist()} == expected


def test_an_equal_text_of_the_test_split_stays_and_all_others_go():
    removed = found_in(["甲乙丙丁"] * 3, ["train", "test", "dev"], 1)
    assert removed["key"].tolist() == sorted([key_of(0, "train"), key_of(2, "dev")])
    assert removed["kept"].tolist() == [key_of(1, "test")] * 2 and removed["equal"].all()


def test_short_texts_are_duplicates_only_where_they_are_equal():
    removed = found_in(["平安夜", "平安日", "平安夜"], ["train"] * 3, 1)
    assert removed["key"].tolist() == [key_of(2, "train")]


def test_what_is_compared_leaves_out_the_words_that_all_prompts_have():
    prompt = "请把下面这句古文翻译成现代汉语，注意保持原意："
    row = {"prompt": f"{prompt}学而时习之", "answers": [{"answer": "经常温习", "score": 1}]}
    assert compared_text(Item(row, "f:1", "g", content="学而时习之")) == "学而时习之\n经常温习"
    assert compared_text(Item(row, "f:1", "g")) == f"{prompt}学而时习之\n经常温习"


def test_chains_leave_the_smallest():
    edges = np.array([(5, 9, True), (9, 2, False), (7, 8, True)], EDGE)
    removed = to_remove(edges)
    assert removed["key"].tolist() == [5, 8, 9] and removed["kept"].tolist() == [2, 7, 2]
    assert len(to_remove(np.empty(0, EDGE))) == 0


def test_texts_in_two_splits_are_named_in_the_later_one():
    rows = [
        (
            {"prompt": "问一", "answers": [{"answer": "当然是可以的", "score": 1}, {"answer": "不行", "score": 0}]},
            "train",
        ),
        (
            {"prompt": "问二", "answers": [{"answer": "当然是可以的", "score": 1}, {"answer": "不行", "score": 0}]},
            "test",
        ),
        ({"prompt": "问三", "answers": [{"answer": "也许是这样的", "score": 1}]}, "dev"),
        ({"prompt": "问一", "answers": [{"answer": "未必真的如此", "score": 1}]}, "dev"),
    ]
    keys = [key_of(number, split) for number, (_, split) in enumerate(rows)]
    entries = text_hashes([Item(row, "f:1", "g") for row, _ in rows], keys)
    found = in_two_splits(entries)
    # "不行" is too short to be a text that was learned by heart.
    assert [(key, text) for _, key, text in found.tolist()] == [(keys[0], 0), (keys[0], 1)]
    assert len(in_two_splits(np.empty(0, TEXT))) == 0

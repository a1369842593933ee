from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keju.trees.column_mask import dense_mask
from keju.trees.packed_batch import PackedBatch
from keju.trees.packing import Packs, pack
from keju.trees.segment import Segment


def random_tree(rng: random.Random, depth: int = 2, vocab: int = 90) -> Segment:
    tokens = [rng.randrange(4, vocab) for _ in range(rng.randrange(0 if depth < 2 else 1, 6))]
    branches = [random_tree(rng, depth - 1, vocab) for _ in range(rng.randrange(0, 4))] if depth else []
    return Segment(tokens, trained=[rng.random() < 0.6 for _ in tokens], branches=branches)


def paths(tree: Segment, prefix=()):
    """(segment, tokens before it on its path): the slow, obvious definition of what a segment sees."""
    yield tree, list(prefix)
    for branch in tree.branches:
        yield from paths(branch, [*prefix, *tree.tokens])


def test_layout_of_a_prompt_with_two_answers():
    tree = Segment(
        [10, 11], branches=[Segment([20, 21, 2], trained=True, values={"score": 1.0}), Segment([30, 2], True)]
    )
    batch = PackedBatch.from_trees([tree, Segment([40, 41], True)])
    assert batch.input_ids.tolist() == [[10, 11, 20, 21, 2, 30, 2, 40, 41]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 2, 3, 0, 1]]
    assert batch.visible_from.tolist() == list(range(9))
    assert batch.visible_until.tolist() == [7, 7, 5, 5, 5, 7, 7, 9, 9]
    # the last prompt token predicts the first token of each answer; nothing predicts the first token of a tree
    assert list(zip(batch.source.tolist(), batch.target.tolist(), strict=True)) == [
        (1, 20), (2, 21), (3, 2), (1, 30), (5, 2), (7, 41),
    ]  # fmt: skip
    assert batch.target_segment.tolist() == [1, 1, 1, 2, 2, 3]
    assert batch.segment_tree.tolist() == [0, 0, 0, 1]
    assert batch.segment_parent.tolist() == [-1, 0, 0, -1]
    assert batch.values["score"][1] == 1.0 and batch.values["score"][0].isnan()


def test_bidirectional_segment_sees_itself_whole():
    batch = PackedBatch.from_trees([Segment([1, 2, 3], bidirectional=True, branches=[Segment([4, 5])])])
    expected = [[1, 1, 1, 0, 0]] * 3 + [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert dense_mask(batch.visible_from, batch.visible_until).int().tolist() == expected


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 10**9))
def test_each_token_sees_exactly_its_path(seed):
    rng = random.Random(seed)
    trees = [random_tree(rng) for _ in range(rng.randrange(1, 4))]
    batch = PackedBatch.from_trees(trees)
    mask = dense_mask(batch.visible_from, batch.visible_until)
    ids = batch.input_ids[0]
    rows = [(segment, before) for tree in trees for segment, before in paths(tree)]
    assert len(rows) == batch.num_segments
    for number, (segment, before) in enumerate(rows):
        for offset in range(len(segment.tokens)):
            index = int(batch.segment_start[number]) + offset
            seen = [*before, *segment.tokens[: offset + 1]]
            assert ids[mask[index]].tolist() == seen
            assert int(batch.position_ids[0, index]) == len(seen) - 1
    predictions = [
        ([*before, *segment.tokens[:offset]], token)
        for segment, before in rows
        for offset, token in enumerate(segment.tokens)
        if segment.trained[offset] and [*before, *segment.tokens[:offset]]
    ]
    assert [
        (ids[mask[source]].tolist(), target) for source, target in zip(batch.source, batch.target.tolist(), strict=True)
    ] == predictions
    assert sum(tree.num_predictions for tree in trees) == len(predictions)
    assert sum(tree.num_tokens for tree in trees) == batch.num_tokens


def test_token_values_follow_their_tokens():
    tree = Segment([1], branches=[Segment([5, 6], [False, True], token_values={"old": [0.25, 0.5]})])
    batch = PackedBatch.from_trees([tree])
    assert batch.token_values["old"].tolist() == [0.5]
    with pytest.raises(ValueError, match="'old': 1 numbers for 2 tokens"):
        PackedBatch.from_trees([Segment([5, 6], token_values={"old": [0.5]})])
    with pytest.raises(ValueError, match="2 tokens has 1 training flags"):
        PackedBatch.from_trees([Segment([5, 6], trained=[True])])


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(50, 120), st.one_of(st.none(), st.integers(1, 5)))
def test_packs_hold_everything_once_within_the_budget(lengths, budget, max_items):
    packs = pack(lengths, budget, max_items)
    assert sorted(index for members in packs for index in members) == list(range(len(lengths)))
    for members in packs:
        assert sum(lengths[index] for index in members) <= budget
        assert max_items is None or len(members) <= max_items
    if max_items is None and lengths:
        # any two packs could not have been one
        sums = sorted(sum(lengths[index] for index in members) for members in packs)
        assert len(sums) < 2 or sums[0] + sums[1] > budget


def test_an_item_longer_than_the_budget_is_an_error_that_names_the_flag():
    with pytest.raises(ValueError, match="^token_budget: .*fit 10;"):
        pack([3, 11], 10)


def test_packs_are_split_for_processes():
    packs = Packs(np.arange(6), np.array([0, 3, 5]), np.array([3, 5, 6]))
    assert list(packs) == [[0, 1, 2], [3, 4], [5]]
    assert list(packs.split_to_multiple(4)) == [[0], [3, 4], [5], [1, 2]]
    assert list(packs.split_to_multiple(5)) == [[0], [3], [5], [1, 2], [4]]
    assert list(packs.ordered(np.array([2, 0]))) == [[5], [0, 1, 2]] and list(packs[1:]) == [[3, 4], [5]]
    with pytest.raises(ValueError, match="too few records"):
        packs[2:].split_to_multiple(2)


def test_moving_a_batch_keeps_it():
    batch = PackedBatch.from_trees([Segment([1, 2], True, values={"score": 2.0})])
    moved = batch.to("cpu")
    assert torch.equal(moved.values["score"], batch.values["score"]) and moved.num_trees == 1

"""Lazy sequences are the lists that they stand for."""

import pickle

import numpy as np
import pytest

from keju.trees.lazy_trees import Chosen, ChosenTrees, JoinedTrees, RootTokens, lengths_of
from keju.trees.segment import Segment

TREES = [Segment([1, 2], branches=[Segment([3])]), Segment([4]), Segment([5, 6, 7]), Segment([], branches=[])]


@pytest.mark.parametrize(
    ("lazy", "expected"),
    [
        (ChosenTrees(TREES, range(1, 3)), TREES[1:3]),
        (ChosenTrees(TREES, np.array([3, 0, 0])), [TREES[3], TREES[0], TREES[0]]),
        (JoinedTrees([TREES, TREES[:2]]), TREES + TREES[:2]),
        (JoinedTrees([TREES[:1], [], ChosenTrees(TREES, [2])]), [TREES[0], TREES[2]]),
        (ChosenTrees(JoinedTrees([TREES, TREES[:2]]), range(4, 6)), TREES[:2]),
        (RootTokens(TREES), [tree.tokens for tree in TREES]),
        (Chosen("abcd", np.array([2, 1])), ["c", "b"]),
        (ChosenTrees(TREES, []), []),
    ],
)
def test_as_the_list(lazy, expected):
    assert len(lazy) == len(expected) and list(lazy) == expected
    assert [lazy[-number] for number in range(1, len(lazy) + 1)] == expected[::-1]
    assert lazy[1:] == expected[1:] and lazy[::-2] == expected[::-2]
    for outside in (len(expected), -len(expected) - 1):
        with pytest.raises(IndexError):
            lazy[outside]
    assert list(pickle.loads(pickle.dumps(lazy))) == expected  # for processes that load data
    if expected and isinstance(expected[0], Segment):
        assert lengths_of(lazy).tolist() == [tree.num_tokens for tree in expected]

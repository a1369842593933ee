"""Cached reference log-probabilities: laid over trees as they are read, so that no trees stay in memory."""

from __future__ import annotations

import json
import random
import weakref
from dataclasses import replace

import numpy as np
import pytest
from tiny_models import build_llama

from keju.training.objectives.kto import MismatchedAnswers
from keju.training.reference_cache import reference_trees, tree_key
from keju.trees.lazy_trees import LazyTrees
from keju.trees.segment import Segment

BUDGET = 64


def make_trees(count: int) -> list[Segment]:
    rng = random.Random(0)

    def ids(longest: int) -> list[int]:
        return [rng.randint(4, 90) for _ in range(rng.randint(2, longest))]

    def branch() -> Segment:
        tokens = ids(9)
        return Segment(tokens, trained=[rng.random() < 0.7 for _ in tokens], values={"score": rng.random()})

    return [Segment(ids(12), branches=[branch() for _ in range(rng.randint(1, 3))]) for _ in range(count)]


class Watched(LazyTrees):
    """Makes a new tree at each reading and knows how many are still there."""

    def __init__(self, trees: list[Segment]) -> None:
        self._trees, self.lengths = trees, np.array([tree.num_tokens for tree in trees])
        self.alive = self.most = 0

    def item(self, index: int) -> Segment:
        tree = replace(self._trees[index])
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(tree, self._gone)
        return tree

    def _gone(self) -> None:
        self.alive -= 1


def numbers_of(tree: Segment, by_token: bool) -> list:
    if by_token:
        return [branch.token_values["ref_logprob"] for branch in tree.branches]
    return [branch.values["ref_logprob"] for branch in tree.branches]


@pytest.mark.parametrize("kto", [False, True])
@pytest.mark.parametrize("by_token", [False, True])
def test_numbers_are_in_memory_and_trees_are_not(tmp_path, by_token, kto):
    model, watched = build_llama(), Watched(make_trees(200))
    trees = MismatchedAnswers(watched, BUDGET) if kto else watched
    (found,) = reference_trees(model, [trees], token_budget=BUDGET, cache_dir=tmp_path, by_token=by_token)
    (again,) = reference_trees(model, [trees], token_budget=BUDGET, cache_dir=tmp_path, by_token=by_token)
    assert watched.alive == 0 and watched.most <= 32  # those of a packed row, and the next one for each in KTO
    assert (found.num_computed, again.num_computed) == (200, 0)
    assert found.lengths.tolist() == [tree.num_tokens for tree in trees]
    for plain, tree, cached in zip(trees, found, again, strict=True):
        assert tree == cached
        bare = replace(tree, branches=[replace(b, values={}, token_values={}) for b in tree.branches])
        assert bare == replace(plain, branches=[replace(b, values={}) for b in plain.branches])
        for branch, own in zip(tree.branches, plain.branches, strict=True):
            assert branch.values.get("score") == own.values.get("score")
            if by_token:
                numbers = branch.token_values["ref_logprob"]
                assert [number < 0 for number in numbers] == branch.trained_flags
    (sums,) = reference_trees(model, [trees], token_budget=BUDGET, cache_dir=tmp_path / "other")
    for tree, whole in zip(found, sums, strict=True):
        own = [sum(n) if by_token else n for n in numbers_of(tree, by_token)]
        assert own == pytest.approx(numbers_of(whole, False), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("by_token", [False, True])
def test_parts_are_packed_together_and_each_gets_its_own(tmp_path, by_token):
    model, trees = build_llama(), make_trees(20)
    settings = {"token_budget": BUDGET, "by_token": by_token}
    (whole,) = reference_trees(model, [trees], cache_dir=tmp_path / "whole", **settings)
    for parts in ([trees[:13], trees[13:]], [trees[:1], [], trees[1:]]):
        found = reference_trees(model, parts, cache_dir=tmp_path / f"{len(parts)}", **settings)
        assert [tree for part in found for tree in part] == list(whole)
        assert [part.num_computed for part in found] == list(map(len, parts))
    first, second = reference_trees(model, [trees[:3], make_trees(30)[15:]], cache_dir=tmp_path / "whole", **settings)
    assert (first.num_computed, second.num_computed) == (0, 10)


@pytest.mark.parametrize("by_token", [False, True])
def test_what_changed_or_is_damaged_is_computed_again(tmp_path, by_token):
    model, trees = build_llama(), make_trees(20)
    trees.append(replace(trees[3]))  # twice the same

    def computed(trees) -> list:
        (found,) = reference_trees(model, [trees], token_budget=BUDGET, cache_dir=tmp_path, by_token=by_token)
        results.append([numbers_of(tree, by_token) for tree in found])
        return found.num_computed

    results: list[list] = []
    assert computed(trees) == 21 and computed(trees) == 0 and results[0] == results[1]
    (path,) = tmp_path.iterdir()
    lines = path.read_text().splitlines()
    assert len(lines) == 21 and json.loads(lines[5])["tree"] == tree_key(trees[5])
    row = json.loads(lines[7])
    for damaged in ("{", "[1]", json.dumps(row | {"logprobs": [None]}), json.dumps(row | {"logprobs": []}), "\0\udcff"):
        content = "\n".join([*lines[:7], damaged, *lines[8:], ""])
        path.write_bytes(content.encode("utf-8", "surrogateescape"))
        assert computed(trees) == 1
        np.testing.assert_allclose(*(np.hstack([np.hstack(t) for t in r]) for r in (results[0], results[-1])), 1e-5)
    path.write_text("\n".join([*lines[:19], lines[19][:-9]]))  # as a kill leaves it
    assert computed(trees) == 1 and computed(trees) == 0
    other = replace(trees[0], tokens=[*trees[0].tokens[:-1], 91])
    assert computed([other, *trees[1:]]) == 1

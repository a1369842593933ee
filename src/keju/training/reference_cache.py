"""Reference log-probabilities, computed once and kept on disk under a key of model and data.

One file a model, named by a hash of its weights and by the precision of its passes; in it one line an answer set, named
by a hash of its tokens: editing one record computes that record again and nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from torch import nn

from keju.models.gathering import whole
from keju.records.journal import Journal
from keju.training.answer_scores import BranchNumbers, answer_logprobs, answer_token_logprobs
from keju.training.cache_folder import warn_if_open
from keju.training.stage_model import autocast_of, model_inside, passes_of
from keju.trees.lazy_trees import ChosenTrees, JoinedTrees, LazyTrees, lengths_of
from keju.trees.segment import Segment

NAME = "ref_logprob"
KEY_BYTES = 16


def model_key(model: nn.Module) -> str:
    """Hash of every weight (name, shape, type, bytes), hex. About a second a gigabyte."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        with whole([tensor]):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def tree_key(tree: Segment) -> str:
    """Hash of the prompt's and the answers' tokens and of which of them count, hex. Scores take no part."""

    content = [[list(segment.tokens), list(map(int, segment.trained_flags))] for segment in tree.preorder()]
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=KEY_BYTES).hexdigest()


class ReferenceTrees(LazyTrees):
    """Trees whose branches have `values["ref_logprob"]`, which is added as they are read; only numbers are in memory.

    numbers: one a branch; or, by_token, one a trained token of the branches, for `token_values["ref_logprob"]` (0 where
    a token is not trained). num_computed: of how many trees they were not in the cache.
    """

    def __init__(self, trees: Sequence[Segment], numbers: BranchNumbers, *, by_token: bool, num_computed: int) -> None:
        self._trees, self._numbers, self._by_token = trees, numbers, by_token
        self.num_computed, self.lengths = num_computed, lengths_of(trees)

    def item(self, index: int) -> Segment:
        tree, numbers = self._trees[index], iter(self._numbers.of(index).tolist())
        return replace(tree, branches=[self._with_numbers(branch, numbers) for branch in tree.branches])

    def _with_numbers(self, branch: Segment, numbers: Iterator[float]) -> Segment:
        if not self._by_token:
            return replace(branch, values={**branch.values, NAME: next(numbers)})
        by_token = [next(numbers) if flag else 0.0 for flag in branch.trained_flags]
        return replace(branch, token_values={**branch.token_values, NAME: by_token})


def reference_trees(
    model: nn.Module,
    parts: Sequence[Sequence[Segment]],
    *,
    token_budget: int,
    cache_dir: Path,
    by_token: bool = False,
    write: bool = True,
    on_tree: Callable[[int], None] = lambda count: None,
) -> list[ReferenceTrees]:
    """The trees of each part with the reference log-probabilities of their branches from the cache, computing what is
    not there, for all parts together.

    `model` must be the reference as it stands (the policy before its first step). `write=False`: another process of
    this run writes the file. A damaged line, as a killed run may leave behind, counts as not there.
    """
    warn_if_open(Path(cache_dir).expanduser())
    passes = passes_of(model)
    dtype = autocast_of(passes)
    name = [model_key(model_inside(passes))]
    name += [str(dtype).removeprefix("torch.")] if dtype is not None else []
    name += ["tokens"] if by_token else []
    journal = Journal(Path(cache_dir).expanduser() / f"{'_'.join(name)}.jsonl")
    trees = JoinedTrees(parts)
    known = _Numbers(trees, by_token)
    known.read(journal)
    missing = np.flatnonzero(~known.is_there)
    on_tree(len(trees) - len(missing))
    compute = answer_token_logprobs if by_token else answer_logprobs
    computed = compute(model, ChosenTrees(trees, missing), token_budget=token_budget, on_tree=on_tree)
    for number, index in enumerate(missing):
        known.set(known.keys[index], computed.of(number))
    if len(missing) and write:
        journal.extend(
            {
                "tree": known.keys[index].ljust(KEY_BYTES, b"\0").hex(),  # numpy takes zeros off the end
                "logprobs": _by_branch(computed.of(number).tolist(), trees[index] if by_token else None),
            }
            for number, index in enumerate(missing)
        )
    found, first = [], 0
    for part in parts:
        last = first + len(part)
        numbers = BranchNumbers(known.found.flat, known.found.starts[first : last + 1])
        num_computed = int(((first <= missing) & (missing < last)).sum())
        found.append(ReferenceTrees(part, numbers, by_token=by_token, num_computed=num_computed))
        first = last
    return found


class _Numbers:
    """The numbers of all trees while they are gathered. is_there: bool [trees]."""

    def __init__(self, trees: Sequence[Segment], by_token: bool) -> None:
        self.keys = np.empty(len(trees), f"S{KEY_BYTES}")
        sizes = np.empty(len(trees), np.int64)
        for index, tree in enumerate(trees):
            self.keys[index] = bytes.fromhex(tree_key(tree))
            sizes[index] = sum(sum(b.trained_flags) for b in tree.branches) if by_token else len(tree.branches)
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        self.found = BranchNumbers(np.zeros(int(starts[-1]), np.float32), starts)
        self.is_there = np.zeros(len(trees), bool)
        self._by_token = by_token
        self._order = np.argsort(self.keys, kind="stable")
        self._sorted = self.keys[self._order]

    def read(self, journal: Journal) -> None:
        for row in journal.read(on_bad_line="skip"):
            with suppress(ValueError, KeyError, TypeError):
                numbers = chain.from_iterable(row["logprobs"]) if self._by_token else row["logprobs"]
                self.set(bytes.fromhex(row["tree"]), [float(number) for number in numbers])

    def set(self, key: bytes, numbers: Sequence[float] | np.ndarray) -> None:
        """Of every tree with this key, unless it has another number of branches or tokens."""
        first, last = (np.searchsorted(self._sorted, key, side) for side in ("left", "right"))
        for index in self._order[first:last]:
            own = self.found.of(index)
            if len(own) == len(numbers):
                own[:] = numbers
                self.is_there[index] = True


def _by_branch(numbers: list[float], tree: Segment | None) -> list[float] | list[list[float]]:
    if tree is None:  # they are one a branch
        return numbers
    every = iter(numbers)
    return [list(islice(every, sum(branch.trained_flags))) for branch in tree.branches]

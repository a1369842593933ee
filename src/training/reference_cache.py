"""Reference log-probabilities, computed once and kept on disk under a key of model and data.

One file a model, named by a hash of its weights; in it one line an answer set, named by a hash of its tokens: editing
one record computes that record again and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from keju.models.gathering import whole
from keju.training.answer_scores import answer_logprobs, answer_token_logprobs
from keju.training.stage_model import model_inside, passes_of
from keju.trees.segment import Segment


def default_cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "keju" / "reference_logprobs"


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
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()


def add_reference_logprobs(
    model: nn.Module,
    trees: Sequence[Segment],
    *,
    token_budget: int,
    cache_dir: Path,
    by_token: bool = False,
    write: bool = True,
    on_tree: Callable[[int], None] = lambda count: None,
) -> int:
    """Sets `values["ref_logprob"]` of every branch from the cache, computing what is not there -> trees computed.

    by_token: sets `token_values["ref_logprob"]` instead, of every trained token (0 where one is not trained).

    `model` must be the reference as it stands (the policy before its first step). `write=False`: another process of
    this run writes the file. A damaged line, as a killed run may leave behind, counts as not there.
    """
    key = model_key(model_inside(passes_of(model)))
    path = Path(cache_dir).expanduser() / f"{key}{'_tokens' if by_token else ''}.jsonl"
    known = _read(path, by_token)
    keys = [tree_key(tree) for tree in trees]
    missing = [index for index, key in enumerate(keys) if len(known.get(key, ())) != len(trees[index].branches)]
    on_tree(len(trees) - len(missing))
    compute = answer_token_logprobs if by_token else answer_logprobs
    computed = compute(model, [trees[index] for index in missing], token_budget=token_budget, on_tree=on_tree)
    lines = []
    for index, numbers in zip(missing, computed, strict=True):
        known[keys[index]] = numbers
        lines.append(json.dumps({"tree": keys[index], "logprobs": numbers}) + "\n")
    if lines and write:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))
    for tree, key in zip(trees, keys, strict=True):
        for branch, found in zip(tree.branches, known[key], strict=True):
            if by_token:
                numbers = iter(found)
                branch.token_values["ref_logprob"] = [next(numbers) if flag else 0.0 for flag in branch.trained_flags]
            else:
                branch.values["ref_logprob"] = found
    return len(missing)


def _read(path: Path, by_token: bool) -> dict[str, list]:
    known = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError, KeyError, TypeError):
                row = json.loads(line)
                known[row["tree"]] = [
                    [float(number) for number in found] if by_token else float(found) for found in row["logprobs"]
                ]
    return known

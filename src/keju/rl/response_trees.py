"""Rollouts as token trees: a prompt is the root, its responses are the branches.

So each model computes a prompt once. Trees are packed into a token budget; what comes out of a pack is scattered into
padded [B, T] tensors, row = response, column = action, on which the formulas work.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from keju.errors import UserError
from keju.rl.modes import Actions, rules_of
from keju.rl.rollout import Rollout
from keju.training.processes import own_parts
from keju.trees.packed_batch import PackedBatch
from keju.trees.packing import pack
from keju.trees.segment import Segment

Share = tuple[PackedBatch, bool]  # a pack, and whether it counts (see own_parts)


@dataclass
class ResponseTrees:
    """B responses of up to T actions. Masks are bool, True = counts."""

    rollouts: list[Rollout]  # without the responses that the mode drops
    trees: list[Segment]  # the `number` of a branch: its row below
    mask: Tensor  # [B, T] actions
    loss_mask: Tensor  # [B, T] actions that are trained
    score_index: Tensor  # int64 [B] the token of each response at which its score is read
    finished: Tensor  # [B] bool
    lengths: Tensor  # int64 [B] generated tokens


def lay_out(
    rollouts: Sequence[Rollout], *, mode: str, pad_id: int, token_budget: int, device: torch.device | str
) -> ResponseTrees:
    """Raises UserError when the mode drops every response or one does not fit `token_budget`."""
    rules = rules_of(mode)
    width = max(len(response.ids) for rollout in rollouts for response in rollout.responses)
    kept: list[Rollout] = []
    actions: list[Actions] = []
    trees: list[Segment] = []
    for rollout in rollouts:
        chosen = [(response, rules.actions_of(response, width, pad_id)) for response in rollout.responses]
        chosen = [(response, found) for response, found in chosen if found is not None]
        if not chosen:
            continue
        kept.append(Rollout(rollout.prompt, tuple(response for response, _ in chosen)))
        rows = {len(actions) + number: found.tokens for number, (_, found) in enumerate(chosen)}
        trees += branch_trees(rollout.prompt, rows, token_budget)
        actions += [found for _, found in chosen]
    if not actions:
        raise UserError(f"{mode}: every response is empty, nothing is left to learn from", option="ppo_mode")
    mask = torch.zeros(len(actions), max(len(found.tokens) for found in actions), dtype=torch.bool)
    loss_mask = torch.zeros_like(mask)
    for row, found in enumerate(actions):
        mask[row, : len(found.tokens)] = True
        loss_mask[row, : len(found.tokens)] = torch.tensor(found.trained)
    responses = [response for rollout in kept for response in rollout.responses]
    return ResponseTrees(
        rollouts=kept,
        trees=trees,
        mask=mask.to(device),
        loss_mask=loss_mask.to(device),
        score_index=torch.tensor([found.score_index for found in actions], device=device),
        finished=torch.tensor([response.finished for response in responses], device=device),
        lengths=torch.tensor([len(response.ids) for response in responses], device=device),
    )


def branch_trees(prompt: Sequence[int], responses: Mapping[int, Sequence[int]], token_budget: int) -> Iterator[Segment]:
    """The tree(s) of one prompt; `responses`: row -> ids. Several trees where one would not fit `token_budget`."""
    longest = len(prompt) + max(map(len, responses.values()))
    if longest > token_budget:
        raise UserError(
            f"{token_budget} does not hold a prompt of {len(prompt)} tokens with a response, {longest} together; raise "
            "it, or lower --max_prompt_length or --max_new_tokens",
            option="token_budget",
        )
    tree = Segment(prompt)
    for row, ids in responses.items():
        if tree.num_tokens + len(ids) > token_budget:
            yield tree
            tree = Segment(prompt)
        tree.branches.append(Segment(ids, trained=True, number=row))
    yield tree


def own_batches(trees: Sequence[Segment], token_budget: int, device: torch.device) -> list[Share]:
    """The packs that this process computes of those that the processes of a run share."""
    packs = pack([tree.num_tokens for tree in trees], token_budget)
    return [
        (PackedBatch.from_trees([trees[index] for index in members]).to(device), counts)
        for members, counts in own_parts(packs)
    ]


def action_coordinates(batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """Row and column in the padded [B, T] tensors of each of the N predictions of a pack: int64 [N], [N]."""
    rows = batch.segment_number[batch.target_segment]
    return rows, batch.token_index - batch.segment_start[batch.target_segment]


def branch_rows(batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """Segment and row of each response of a pack: int64 [R], [R]."""
    (segments,) = (batch.segment_number >= 0).nonzero(as_tuple=True)
    return segments, batch.segment_number[segments]

"""Prefix language models (GLM, ChatGLM-6B): where the tokens of a row stand, and which of them see each other.

A row is a context, a start token, and what is generated after it. Context tokens see each other in both directions;
the start token and everything after it sees the context and what was generated before. Positions are pairs: the first
of a context token is its place, its second is 0; generated tokens stand at the place of the mask token that they fill
in, their second position counts 1, 2, 3 ... from the start token on (GLM, arXiv 2103.10360, section 2.2).

All of that follows from the token ids, so that padded rows, packed trees and generation share one function.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from transformers.cache_utils import Cache


class MaskTokens(NamedTuple):
    """Tokens of the context that say "fill in here". Generated tokens stand at the place of the first of them, from the
    token `lag` after the start token on."""

    ids: tuple[int, ...]
    lag: int = 0


class PrefixLayout(NamedTuple):
    """position_ids int64 [2, N]; in_context bool [N]; start int64 [rows]: index of each row's first token."""

    position_ids: torch.Tensor
    in_context: torch.Tensor
    start: torch.Tensor


def prefix_layout(
    ids: torch.Tensor,
    positions: torch.Tensor,
    row: torch.Tensor,
    num_rows: int,
    *,
    start_id: int,
    masks: Sequence[MaskTokens],
) -> PrefixLayout:
    """The layout of rows that stand one after the other in flat tensors.

    ids int64 [N]; positions int64 [N]: the place of each token in its row (in a tree: on its path from the root);
    row int64 [N]: the number of the row or tree. Of `masks` the first kind counts that the context of a row holds.
    A row without a start token is context as a whole.
    """
    length = ids.shape[0]
    index = torch.arange(length, device=ids.device)

    def first(where: torch.Tensor) -> torch.Tensor:
        """[rows]: index of the first token of each row for which `where` holds, N if there is none."""
        candidates = torch.where(where, index, length)
        return index.new_full((num_rows,), length).scatter_reduce(0, row, candidates, "amin")

    start = first(ids == start_id)
    in_context = index < start[row]
    places = positions
    unfilled = torch.ones_like(start, dtype=torch.bool)
    for mask in masks:
        found = first(in_context & torch.isin(ids, ids.new_tensor(mask.ids)))
        fills = (unfilled & (found < length))[row] & (index >= start[row] + mask.lag)
        places = torch.where(fills, positions[found.clamp(max=length - 1)][row], places)
        unfilled = unfilled & (found == length)
    start_position = positions[start.clamp(max=length - 1)]
    blocks = torch.where(in_context, 0, positions - start_position[row] + 1)
    return PrefixLayout(torch.stack([places, blocks]), in_context, first(torch.ones_like(in_context)))


def row_positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """int64 [B, T]: the place of each token among those that count; pads in front get 0."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def prefix_mask(
    in_context: torch.Tensor | None,
    attention_mask: torch.Tensor,
    num_queries: int,
    past: int,
    num_keys: int,
    dtype: torch.dtype,
) -> torch.Tensor | None:
    """[B or 1, 1, T, num_keys] to add to scores: 0 where the key is visible, the lowest number elsewhere.

    in_context bool [B, T]: keys that all of the T queries see; None: none of them. attention_mask [B or 1, past + T]:
    keys that count. Keys beyond these are empty places of the cache. Returns None where every query sees every key.
    """
    device, room = attention_mask.device, num_keys - past - num_queries
    query = torch.arange(num_queries, device=device)[:, None] + past
    visible = (torch.arange(num_keys, device=device) <= query)[None, None]
    if in_context is not None:
        visible = visible | nn.functional.pad(in_context, (past, room))[:, None, None, :]
    visible = visible & nn.functional.pad(attention_mask.bool(), (0, room))[:, None, None, :]
    return None if bool(visible.all()) else to_additive(visible, dtype)


def to_additive(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask of any dtype, 1 = counts, as numbers to add to scores. A query that sees no key sees all of them alike."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(
        ~visible.bool(), torch.finfo(dtype).min
    )


class PrefixLM(ABC):
    """Mixin of a backbone that is a prefix language model."""

    @property
    @abstractmethod
    def context_end(self) -> tuple[int, int]:
        """Ids of a mask token and of the start token: with these a context ends."""

    @abstractmethod
    def layout(
        self, ids: torch.Tensor, positions: torch.Tensor, row: torch.Tensor, num_rows: int, *, generated: bool = True
    ) -> PrefixLayout:
        """prefix_layout with the special tokens of this model. `generated`: the positions that generation uses."""

    def padded_layout(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *, generated: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """input_ids [B, T], attention_mask [B, T] (1 = counts) -> position_ids [B, 2, T], in_context bool [B, T]."""
        batch, length = input_ids.shape
        row = torch.arange(batch, device=input_ids.device).repeat_interleave(length)
        positions = row_positions(attention_mask).flatten()
        found = self.layout(input_ids.flatten(), positions, row, batch, generated=generated)
        return found.position_ids.view(2, batch, length).transpose(0, 1), found.in_context.view(batch, length)

    def positions_and_mask(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        past_key_values: Cache | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """position_ids [B, 2, T] and the mask to add to scores, from what a forward pass was given. What is in the
        cache is visible to all. See GLMModel.forward for what each kind of mask means."""
        batch, length = inputs_embeds.shape[:2]
        past, num_keys = 0, length
        if past_key_values is not None:
            past = int(past_key_values.get_seq_length())
            num_keys, _ = past_key_values.get_mask_sizes(length, 0)  # more than past + T where room is kept ahead
        device, dtype = inputs_embeds.device, inputs_embeds.dtype
        index = torch.arange(length, device=device)
        in_context = None
        if attention_mask is None:
            attention_mask = torch.ones(1, past + length, dtype=torch.bool, device=device)
        elif attention_mask.dim() == 1:
            in_context = index < attention_mask[:, None] - past
            attention_mask = torch.ones(1, past + length, dtype=torch.bool, device=device)
        elif attention_mask.dim() == 2 and not past:
            if input_ids is None:
                raise ValueError("a 2-D attention mask needs input_ids: they say where the context ends")
            own_positions, in_context = self.padded_layout(input_ids, attention_mask, generated=False)
            position_ids = own_positions if position_ids is None else position_ids
        if position_ids is None:
            places = (index + past).expand(batch, -1)
            position_ids = torch.stack([places, torch.zeros_like(places)], dim=1)
        if attention_mask.dim() == 4:
            return position_ids, to_additive(attention_mask[..., -num_keys:], dtype)
        return position_ids, prefix_mask(in_context, attention_mask, length, past, num_keys, dtype)


class PrefixGenerationMixin:
    """`generate` for a language model on a PrefixLM backbone: positions follow from all ids so far, at every step."""

    def prepare_inputs_for_generation(
        self, input_ids, next_sequence_length=None, attention_mask=None, position_ids=None, **kwargs
    ):
        inputs = super().prepare_inputs_for_generation(
            input_ids, next_sequence_length=next_sequence_length, attention_mask=attention_mask, **kwargs
        )
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        inputs["attention_mask"] = attention_mask  # for a cache of fixed size transformers has put a causal mask there
        positions, _ = self.base_model.padded_layout(input_ids, attention_mask)
        inputs["position_ids"] = positions[..., -inputs["input_ids"].shape[1] :]
        return inputs

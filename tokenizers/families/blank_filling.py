"""The inputs that GLM's tokenizers make for its models: a context and what is generated for its mask token.

`build_inputs_for_generation` and `build_inputs_for_multiple_choice` have the names, arguments and results of the
published code. What differs on purpose: a context that is padded on the left stands at the positions that it has alone.
(The original counted positions through the pads, so that the same text gave another answer.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import BatchEncoding

from keju.errors import UserError
from keju.tokenizers.family import PrefixTokenizer


class BlankFilling(PrefixTokenizer):
    """Mixed into a tokenizer with mask_token_id, smask_token_id and gmask_token_id."""

    def build_inputs_for_generation(
        self,
        model_input: BatchEncoding,
        max_gen_length: int = 512,
        targets: Sequence[str] | Sequence[Sequence[int]] | None = None,
        padding: bool = False,
    ) -> BatchEncoding:
        """For `generate`, or for training where there are `targets` (texts or ids, one a row).

        model_input: input_ids and attention_mask [B, C] of contexts, each with a mask token; the result is

        - without targets: input_ids [B, C + 1], which end in the start token; position_ids [B, 2, C + G] and
          generation_attention_mask [B, 1, C + G, C + G] for the whole length with G = max_gen_length;
        - with targets: input_ids and labels [B, C + G], position_ids [B, 2, C + G] and
          attention_mask [B, 1, C + G, C + G]. Targets are cut to max_gen_length - 1 tokens and ended; G is the length
          of the longest of them, or max_gen_length with `padding`. Labels stand where they are predicted, pads where
          nothing is.

        Raises UserError for a row without a mask token.
        """
        ids, mask = torch.as_tensor(model_input["input_ids"]), torch.as_tensor(model_input["attention_mask"])
        batch = len(ids)
        start = torch.full((batch, 1), self.sop_token_id)
        if targets is None:
            positions, visible = self._generated_layout(ids, mask, max_gen_length)
            return BatchEncoding(
                {
                    "input_ids": torch.cat([ids, start], dim=1),
                    "position_ids": positions,
                    "generation_attention_mask": visible,
                }
            )
        rows = [self._ids_of(target)[: max_gen_length - 1] + [self.eop_token_id] for target in targets]
        length = max_gen_length if padding else max(map(len, rows))
        labels = torch.tensor([row + [self.pad_token_id] * (length - len(row)) for row in rows])
        positions, visible = self._generated_layout(ids, mask, length)
        return BatchEncoding(
            {
                "input_ids": torch.cat([ids, start, labels[:, :-1]], dim=1),
                "position_ids": positions,
                "attention_mask": visible,
                "labels": torch.cat([torch.full_like(ids, self.pad_token_id), labels], dim=1),
            }
        )

    def build_inputs_for_multiple_choice(
        self, model_input: BatchEncoding, choices: Sequence[Sequence[str] | Sequence[Sequence[int]]]
    ) -> BatchEncoding:
        """Each choice of a row as a block behind its context [B, C] that the other blocks do not see.

        The result has input_ids [B, T], position_ids [B, 2, T], attention_mask [B, 1, T, T], and lists: choice_ids
        [row][choice] and choice_indices [row][choice], where in the row each token of a choice is predicted.
        """
        contexts, masks = torch.as_tensor(model_input["input_ids"]), torch.as_tensor(model_input["attention_mask"])
        choice_ids = [[self._ids_of(choice) for choice in row] for row in choices]
        context_length = contexts.shape[1]
        length = context_length + max(sum(map(len, row)) for row in choice_ids)
        input_ids = torch.zeros(len(contexts), length, dtype=torch.long)
        position_ids = torch.zeros(len(contexts), 2, length, dtype=torch.long)
        visible = torch.zeros(len(contexts), 1, length, length, dtype=torch.long)
        indices = []
        for row, (context, mask, blocks) in enumerate(zip(contexts, masks, choice_ids, strict=True)):
            places = _places(mask[None])[0]
            mask_place = places[self._mask_index(context)]
            input_ids[row, :context_length] = context
            position_ids[row, 0] = mask_place
            position_ids[row, 0, :context_length] = places
            visible[row, 0, :, :context_length] = mask
            first, found = context_length, []
            for block in blocks:
                end = first + len(block)
                input_ids[row, first:end] = torch.tensor([self.sop_token_id, *block[:-1]])
                position_ids[row, 1, first:end] = torch.arange(1, len(block) + 1)
                visible[row, 0, first:end, first:end] = torch.ones(len(block), len(block)).tril()
                found.append(list(range(first, end)))
                first = end
            indices.append(found)
        return BatchEncoding(
            {
                "input_ids": input_ids,
                "position_ids": position_ids,
                "attention_mask": visible,
                "choice_ids": choice_ids,
                "choice_indices": indices,
            }
        )

    def _ids_of(self, text: str | Sequence[int]) -> list[int]:
        return self.encode(text, add_special_tokens=False) if isinstance(text, str) else list(text)

    def _mask_index(self, row: torch.Tensor) -> int:
        masks = torch.tensor([self.mask_token_id, self.smask_token_id, self.gmask_token_id])
        found = torch.isin(row, masks).nonzero()
        if not len(found):
            raise UserError("no mask token in the context: put [MASK], [sMASK] or [gMASK] where something is missing")
        return int(found[0])

    def _generated_layout(
        self, ids: torch.Tensor, mask: torch.Tensor, length: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """position_ids [B, 2, C + length] and what sees what, 1 = visible, [B, 1, C + length, C + length]."""
        batch, context_length = ids.shape
        places = _places(mask)
        mask_places = torch.stack([row[self._mask_index(context)] for row, context in zip(places, ids, strict=True)])
        first = torch.cat([places, mask_places[:, None].expand(-1, length)], dim=1)
        blocks = torch.cat([torch.zeros_like(places), torch.arange(1, length + 1).expand(batch, -1)], dim=1)
        total = context_length + length
        visible = torch.ones(total, total, dtype=torch.long).tril().repeat(batch, 1, 1, 1)
        visible[..., :context_length] = mask[:, None, None, :]
        return torch.stack([first, blocks], dim=1), visible


def _places(mask: torch.Tensor) -> torch.Tensor:
    """int64 [B, C]: 0 on the first token that counts, and on pads before it; counting on through pads after it."""
    return (torch.arange(mask.shape[1]) - mask.argmax(1, keepdim=True)).clamp(min=0)

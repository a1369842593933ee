"""The decoding loop: each prompt is computed once for all of its responses, and rows that have ended leave the batch.

`generate` of transformers computes a prompt once for each response, and finished rows until the last one ends.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from keju.models.backbone import unwrapped

# Rows that have ended are kept until they are so many of the batch: leaving means copying the cache.
WORTH_LEAVING = 0.25


class _Rows:
    """The rows that are still generated: ids so far [R, T], which of them count, and their cache."""

    def __init__(self, ids: Tensor, mask: Tensor, cache: Cache, number: Tensor) -> None:
        self.ids, self.mask, self.cache, self.number = ids, mask, cache, number

    def append(self, ids: Tensor) -> None:
        self.ids = torch.cat([self.ids, ids[:, None]], dim=1)
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(ids), 1)], dim=1)

    def keep(self, index: Tensor) -> None:
        self.ids, self.mask, self.number = self.ids[index], self.mask[index], self.number[index]
        self.cache.batch_select_indices(index)


@torch.no_grad()
def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    num_responses: int,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    pad_id: int,
    choose: Callable[[Tensor, Tensor, int], Tensor],
    is_complete: Callable[[list[int]], bool] | None = None,
) -> list[list[int]]:
    """Generated ids of `num_responses` rows for each of P prompts, up to and with the first of `stop_ids`.

    choose(logits [R, vocab], rows int64 [R], step) -> ids [R]; row = prompt * num_responses + response. is_complete: of
    the ids of a row so far, whether it ends there. `model` is in eval mode; adapters of PEFT stay active.
    """
    model = unwrapped(model)
    device = model.device
    width = max(map(len, prompts))
    # Pads stand on the left, so that every row goes on from its last prompt token. The mask comes from lengths and not
    # from ids: a prompt may hold the pad's id (where pad = eos).
    ids = torch.tensor([[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    mask = (torch.arange(width, device=device) >= width - lengths[:, None]).long()
    stops = torch.tensor(list(stop_ids), device=device)

    cache = DynamicCache(config=model.config.get_text_config())
    logits, cache = next_logits(model, ids, mask, cache, new=width)
    if num_responses > 1:
        cache.batch_repeat_interleave(num_responses)
        logits, ids, mask = (part.repeat_interleave(num_responses, dim=0) for part in (logits, ids, mask))
    rows = _Rows(ids, mask, cache, torch.arange(len(ids), device=device))
    generated: list[list[int]] = [[] for _ in range(len(ids))]
    live = torch.ones(len(ids), dtype=torch.bool, device=device)
    for step in range(max_new_tokens):
        chosen = choose(logits, rows.number, step)
        rows.append(chosen)
        ended = torch.isin(chosen, stops)
        for place, (number, token) in enumerate(zip(rows.number.tolist(), chosen.tolist(), strict=True)):
            if live[place]:
                generated[number].append(token)
                if is_complete is not None and is_complete(generated[number]):
                    ended[place] = True
        live &= ~ended
        num_live = int(live.sum())
        if not num_live or step == max_new_tokens - 1:
            break
        if num_live <= (1 - WORTH_LEAVING) * len(live):
            rows.keep(live.nonzero()[:, 0])
            live = live[live]
        logits, rows.cache = next_logits(model, rows.ids, rows.mask, rows.cache, new=1)
    return generated


def next_logits(model: PreTrainedModel, ids: Tensor, mask: Tensor, cache: Cache, new: int) -> tuple[Tensor, Cache]:
    """Logits [R, vocab] behind the last of `new` tokens that the cache does not hold yet."""
    more = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if _takes_positions(type(model)) else {}
    inputs = model.prepare_inputs_for_generation(
        ids, next_sequence_length=new, past_key_values=cache, attention_mask=mask, use_cache=True, **more
    )
    output = model(**{**inputs, "logits_to_keep": 1}, return_dict=True)
    return output.logits[:, -1], output.past_key_values


def _takes_positions(kind: type[PreTrainedModel]) -> bool:
    return "position_ids" in inspect.signature(kind.forward).parameters

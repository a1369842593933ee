"""Batched generation from token ids: left padding, KV cache, prompts of like length together, input order kept.

Nothing is decoded and tokenised again on the way, so that what comes out can be scored as the ids that were generated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from keju.tokenizers.family import answer_end_id


@dataclass(frozen=True)
class Response:
    """Generated ids, at least one. `finished`: the last of them ends the response; otherwise it was cut off."""

    ids: tuple[int, ...]
    finished: bool


def generate_responses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    num_responses: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    do_sample: bool | None = None,
    batch_size: int = 16,
    seed: int = 0,
    is_complete: Callable[[list[int]], bool] | None = None,
    on_batch: Callable[[int, int], None] = lambda num_prompts, num_tokens: None,
) -> list[list[Response]]:
    """`num_responses` responses to each prompt (its token ids), in the order of `prompts`.

    do_sample: by default whenever temperature > 0; otherwise the likeliest token each time. top_p 1 and top_k 0 cut
    nothing off. batch_size: rows (prompts x responses) computed at once. Equal seeds give equal samples (for the same
    batch_size), and the global random state is left as it was. is_complete: of the ids of a response so far, whether it
    may end there without an end token; padding may follow in it. `on_batch` is told the prompts and generated tokens of
    each batch. Only the arguments shape the distribution: a repetition penalty or a top_k of 50 that the checkpoint's
    generation_config.json brings along does not. Raises ValueError naming the flag.
    """
    do_sample = temperature > 0 if do_sample is None else do_sample
    _check(model, prompts, max_new_tokens, num_responses, temperature, top_p, do_sample, batch_size)
    stop_ids = stop_token_ids(model, tokenizer)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stop_ids[0]
    config = GenerationConfig(
        do_sample=do_sample,
        **({"temperature": temperature, "top_p": top_p, "top_k": top_k} if do_sample else {}),
        max_new_tokens=max_new_tokens,
        num_return_sequences=num_responses,
        eos_token_id=list(stop_ids),
        pad_token_id=pad_id,
        use_cache=True,
    )
    responses: list[list[Response]] = [[] for _ in prompts]
    # Longest first: what does not fit into memory shows at once, and the estimate of the time left errs upwards.
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    step = max(1, batch_size // num_responses)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), _generating(model, config):
        torch.manual_seed(seed)
        for start in range(0, len(order), step):
            chosen = order[start : start + step]
            rows = _generate_rows(model, [list(prompts[index]) for index in chosen], pad_id, is_complete)
            made = [trim(row, stop_ids) for row in rows]
            for number, index in enumerate(chosen):
                responses[index] = made[number * num_responses : (number + 1) * num_responses]
            on_batch(len(chosen), sum(len(response.ids) for response in made))
    return responses


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids that end a response: the tokenizer's end token, then what the model's generation_config adds (for chat)."""
    own = answer_end_id(tokenizer)
    more = model.generation_config.eos_token_id if model.generation_config is not None else None
    more = [] if more is None else [more] if isinstance(more, int) else list(more)
    ids = tuple(dict.fromkeys([*([] if own is None else [own]), *more]))
    if not ids:
        raise ValueError("the tokenizer has no eos_token: a response could never end; set eos_token in its folder")
    return ids


def name_special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes what the tokenizer says about end, beginning and padding into the model's config and generation_config, so
    that the checkpoint generates as it was trained. Further ends that these already name stay."""
    ids = {
        "eos_token_id": answer_end_id(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    for config in filter(None, [model.config.get_text_config(), getattr(model, "generation_config", None)]):
        for name, index in ids.items():
            known = getattr(config, name, None)
            if index is not None and isinstance(known, list):
                setattr(config, name, [index, *(other for other in known if other != index)])
            elif index is not None:
                setattr(config, name, index)


def trim(generated: Sequence[int], stop_ids: Sequence[int]) -> Response:
    """Cuts after the first end token, which stays: it was generated. What follows it in a batch is padding."""
    for index, token in enumerate(generated):
        if token in stop_ids:
            return Response(tuple(generated[: index + 1]), finished=True)
    return Response(tuple(generated), finished=False)


class _Complete(StoppingCriteria):
    """Ends each row as soon as `is_complete` says so of what was generated after `width` tokens."""

    def __init__(self, is_complete: Callable[[list[int]], bool], width: int) -> None:
        self.is_complete, self.width = is_complete, width

    def __call__(self, input_ids: torch.Tensor, scores, **kwargs) -> torch.Tensor:
        done = [self.is_complete(row) for row in input_ids[:, self.width :].tolist()]
        return torch.tensor(done, device=input_ids.device)


def _generate_rows(
    model: PreTrainedModel,
    prompts: list[list[int]],
    pad_id: int,
    is_complete: Callable[[list[int]], bool] | None,
) -> list[list[int]]:
    width = max(map(len, prompts))
    # Pads stand on the left, so that every row goes on from its last prompt token. The mask comes from lengths and not
    # from ids: a prompt may hold the pad's id (where pad = eos).
    input_ids = torch.tensor([[pad_id] * (width - len(ids)) + ids for ids in prompts], device=model.device)
    lengths = torch.tensor([len(ids) for ids in prompts], device=model.device)
    attention_mask = (torch.arange(width, device=model.device) >= width - lengths[:, None]).long()
    criteria = StoppingCriteriaList([_Complete(is_complete, width)] if is_complete is not None else [])
    rows = model.generate(input_ids=input_ids, attention_mask=attention_mask, stopping_criteria=criteria)
    return rows[:, width:].tolist()


@contextmanager
def _generating(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Eval mode, no gradients, and `config` in place of the model's own, which transformers would mix into ours."""
    was_training, own = model.training, model.generation_config
    model.eval()
    model.generation_config = config
    try:
        with torch.no_grad():
            yield
    finally:
        model.generation_config = own
        model.train(was_training)


def _check(model, prompts, max_new_tokens, num_responses, temperature, top_p, do_sample, batch_size) -> None:
    for flag, number in (
        ("--max_new_tokens", max_new_tokens),
        ("--num_return_sequences", num_responses),
        ("--batch_size", batch_size),
    ):
        if number < 1:
            raise ValueError(f"{flag} {number}: must be at least 1")
    if do_sample and temperature <= 0:
        raise ValueError(f"--temperature {temperature}: sampling needs one above 0")
    if not 0 < top_p <= 1:
        raise ValueError(f"--top_p {top_p}: must be above 0 and at most 1")
    if not do_sample and num_responses > 1:
        raise ValueError(
            f"--num_return_sequences {num_responses}: without sampling (--temperature 0) all would be equal"
        )
    if not all(map(len, prompts)):
        raise ValueError("an empty prompt: there is no token to go on from")
    longest = max(map(len, prompts), default=0)
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and longest + max_new_tokens > positions:
        raise ValueError(
            f"a prompt of {longest} tokens and --max_new_tokens {max_new_tokens} exceed the {positions} positions of "
            "the model; lower --max_new_tokens or shorten the prompts"
        )

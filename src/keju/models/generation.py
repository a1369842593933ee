"""Batched generation from token ids: left padding, KV cache, prompts of like length together, input order kept.

Nothing is decoded and tokenised again on the way, so that what comes out can be scored as the ids that were generated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from keju.errors import UserError
from keju.models.decoding import decode
from keju.models.evaluating import evaluating
from keju.models.sampling import Sampling, choose, uniforms_of
from keju.tokenizers.family import answer_end_id


@dataclass(frozen=True)
class Response:
    """Generated ids, at least one. `finished`: the last of them ends the response; otherwise it was cut off.

    logprobs: of each id, by an engine that samples instead of the trainer.
    """

    ids: tuple[int, ...]
    finished: bool
    logprobs: tuple[float, ...] | None = field(default=None, compare=False)


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
    numbers: Sequence[int] | None = None,
    is_complete: Callable[[list[int]], bool] | None = None,
    on_batch: Callable[[int, int], None] = lambda num_prompts, num_tokens: None,
) -> list[list[Response]]:
    """`num_responses` responses to each prompt (its token ids), in the order of `prompts`.

    do_sample: by default whenever temperature > 0; otherwise the likeliest token each time. top_p 1 and top_k 0 cut
    nothing off. batch_size: rows (prompts x responses) computed at once. A sample depends on the seed, the number of
    its prompt (`numbers`; by default its place) and its own number alone; the global random state is left as it was.
    is_complete: of the ids of a response so far, whether it may end there without an end token. `on_batch` is told the
    prompts and generated tokens of each batch. Only the arguments shape the distribution: a repetition penalty or a
    top_k of 50 that the checkpoint's generation_config.json brings along does not. Raises UserError naming the flag.
    """
    do_sample = temperature > 0 if do_sample is None else do_sample
    _check(model, prompts, max_new_tokens, num_responses, temperature, top_p, do_sample, batch_size)
    stop_ids = stop_token_ids(model, tokenizer)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stop_ids[0]
    sampling = Sampling(temperature if do_sample else 0.0, top_p, top_k)
    responses: list[list[Response]] = [[] for _ in prompts]
    # Longest first: what does not fit into memory shows at once, and the estimate of the time left errs upwards.
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    step = max(1, batch_size // num_responses)
    with evaluating(model):
        for start in range(0, len(order), step):
            chosen = order[start : start + step]
            drawn_for = [index if numbers is None else numbers[index] for index in chosen]
            uniforms = torch.cat([uniforms_of(seed, number, num_responses, max_new_tokens) for number in drawn_for])
            uniforms = uniforms.to(model.device)
            rows = decode(
                model,
                [prompts[index] for index in chosen],
                num_responses=num_responses,
                max_new_tokens=max_new_tokens,
                stop_ids=stop_ids,
                pad_id=pad_id,
                choose=lambda logits, rows, place, drawn=uniforms: choose(logits, drawn[rows, place], sampling),
                is_complete=is_complete,
            )
            made = [Response(tuple(row), finished=row[-1] in stop_ids) for row in rows]
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
        raise UserError("the tokenizer has no eos_token: a response could never end; set eos_token in its folder")
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


def _check(model, prompts, max_new_tokens, num_responses, temperature, top_p, do_sample, batch_size) -> None:
    for option, number in (
        ("max_new_tokens", max_new_tokens),
        ("num_return_sequences", num_responses),
        ("batch_size", batch_size),
    ):
        if number < 1:
            raise UserError(f"must be at least 1, got {number}", option=option)
    if do_sample and temperature <= 0:
        raise UserError(f"sampling needs one above 0, got {temperature}", option="temperature")
    if not 0 < top_p <= 1:
        raise UserError(f"must be above 0 and at most 1, got {top_p}", option="top_p")
    if not do_sample and num_responses > 1:
        raise UserError(
            f"{num_responses}: without sampling (a temperature of 0) all would be equal", option="num_return_sequences"
        )
    if not all(map(len, prompts)):
        raise UserError("an empty prompt: there is no token to go on from")
    longest = max(map(len, prompts), default=0)
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and longest + max_new_tokens > positions:
        raise UserError(
            f"{max_new_tokens} tokens after a prompt of {longest} exceed the {positions} positions of the model; lower "
            "it or shorten the prompts",
            option="max_new_tokens",
        )

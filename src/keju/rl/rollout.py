"""Rollouts: several responses to each prompt, sampled from the policy, kept as the ids that were generated.

Nothing is ever decoded and tokenised again, and log-probs are not taken from generation: they are scored later, with
the same code and the same temperature on both sides of the ratio (keju.rl.experience).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from keju.errors import UserError
from keju.models.generation import Response, generate_responses
from keju.training.processes import num_processes, sum_over_processes


@dataclass(frozen=True)
class Rollout:
    """A prompt and the responses sampled for it: one token tree. A response's EOS, where it has one, is its last id."""

    prompt: tuple[int, ...]
    responses: tuple[Response, ...]


@dataclass
class Sampler:
    """How responses are sampled; see `generate_responses`. `batch_size`: rows (prompts x responses) at once."""

    tokenizer: PreTrainedTokenizerBase
    num_responses: int
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.num_responses < 1:
            raise UserError(f"must be at least 1, got {self.num_responses}", option="num_responses")
        if self.temperature <= 0:
            raise UserError(f"PPO samples, so it must be above 0, got {self.temperature}", option="temperature")

    @property
    def pad_id(self) -> int:
        pad_id = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad_id is None else pad_id

    def sample(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        seed: int,
        numbers: Sequence[int] | None = None,
    ) -> list[Rollout]:
        """`num_responses` responses to each prompt (token ids), in their order; equal seeds give equal samples.

        numbers: of the prompts, where they are a part of more; a sample depends on seed and number.
        """
        responses = generate_responses(
            model,
            self.tokenizer,
            prompts,
            max_new_tokens=self.max_new_tokens,
            num_responses=self.num_responses,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            do_sample=True,
            batch_size=self.batch_size,
            seed=seed,
            numbers=numbers,
        )
        return [Rollout(tuple(prompt), tuple(own)) for prompt, own in zip(prompts, responses, strict=True)]


def collect_rollouts(
    made: Sequence[Rollout],
    numbers: Sequence[int],
    prompts: Sequence[Sequence[int]],
    sampler: Sampler,
    device: torch.device,
) -> list[Rollout]:
    """The rollouts of all prompts, of which this process has made those of `numbers`."""
    if num_processes() == 1:
        return list(made)
    table = torch.zeros(len(prompts), sampler.num_responses, 2 + sampler.max_new_tokens, dtype=torch.int64)
    for number, rollout in zip(numbers, made, strict=True):
        for row, response in zip(table[number], rollout.responses, strict=True):
            length = len(response.ids)
            row[: 2 + length] = torch.tensor([length, response.finished, *response.ids])
    found = sum_over_processes(table.to(device)).tolist()  # the rows of other processes are zeros
    return [
        Rollout(
            tuple(prompt),
            tuple(Response(tuple(ids[:length]), bool(finished)) for length, finished, *ids in rows),
        )
        for prompt, rows in zip(prompts, found, strict=True)
    ]

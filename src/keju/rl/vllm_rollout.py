"""Rollouts by vLLM (optional): token ids in, token ids and their log-probs out, the trained weights pushed each step.

vLLM computes with other kernels than the trainer, so that the policy that samples is not quite the one that is scored.
How far apart the two are is reported at each step (keju.rl.mismatch); old log-probs are the trainer's, as ever.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from keju.errors import UserError
from keju.models.backbone import unwrapped
from keju.models.causal_lm import CausalLM
from keju.models.generation import Response, stop_token_ids
from keju.rl.rollout import Rollout, Sampler
from keju.training.adapters import has_adapters


@dataclass
class VllmSampler(Sampler):
    """folder: the checkpoint that the engine is made from, the actor's start; gpu_memory: the engine's share."""

    folder: str = ""
    gpu_memory: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        # In this process, so that weights can be handed over as tensors; the other way would pickle functions.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        try:
            import vllm
        except ImportError as error:
            raise UserError("vLLM is not installed (pip install vllm, for a GPU)", option="rollout") from error
        self.engine = vllm.LLM(
            model=self.folder,
            gpu_memory_utilization=self.gpu_memory,
            logprobs_mode="processed_logprobs",  # after the temperature, as the trainer's
            trust_remote_code=False,
        )
        self.make_settings = vllm.SamplingParams

    def sample(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        seed: int,
        numbers: Sequence[int] | None = None,
    ) -> list[Rollout]:
        """As Sampler.sample, with log-probs. Raises UserError for a family of ours, which vLLM does not know."""
        if isinstance(unwrapped(model), CausalLM):
            raise UserError(f"vLLM does not know {type(unwrapped(model)).__name__}; take keju", option="rollout")
        self.push(model)
        stop_ids = stop_token_ids(model, self.tokenizer)
        settings = [
            self.make_settings(
                n=self.num_responses,
                temperature=self.temperature,
                top_p=self.top_p,
                top_k=self.top_k,
                max_tokens=self.max_new_tokens,
                seed=seed * 1_000_003 + number,
                stop_token_ids=list(stop_ids),
                logprobs=0,  # of the sampled token alone
                detokenize=False,
            )
            for number in (numbers or range(len(prompts)))
        ]
        asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        answered = self.engine.generate(asked, settings, use_tqdm=False)
        return [
            Rollout(tuple(prompt), tuple(_response(output, stop_ids) for output in request.outputs))
            for prompt, request in zip(prompts, answered, strict=True)
        ]

    def push(self, model: PreTrainedModel) -> None:
        """Gives the engine the weights as they are now; what it has cached of prompts goes with the old ones."""
        runner = self.engine.llm_engine.model_executor.driver_worker.model_runner
        runner.model.load_weights(named_weights(model))
        self.engine.reset_prefix_cache()


def named_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The weights under the names of the checkpoint; adapters are merged in for as long as this is read."""
    if not has_adapters(model):
        yield from ((name, parameter.data) for name, parameter in model.named_parameters())
        return
    model.merge_adapter()
    try:
        for name, parameter in unwrapped(model).named_parameters():
            if ".lora_" not in name:
                yield name.replace(".base_layer.", "."), parameter.data
    finally:
        model.unmerge_adapter()


def _response(output, stop_ids: Sequence[int]) -> Response:
    ids = tuple(output.token_ids)
    logprobs = tuple(found[token].logprob for token, found in zip(ids, output.logprobs, strict=True))
    return Response(ids, finished=ids[-1] in stop_ids, logprobs=logprobs)

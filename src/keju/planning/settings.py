"""Ways to run a stage, from the fastest to the most frugal, and the command line of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from keju.planning.workload import Workload
from keju.stages.spec import stages

ZERO = ((1, False), (2, False), (3, False), (2, True), (3, True))  # of several processes: stage, offload
REFERENCE, REWARD = "reference", "reward model"


@dataclass(frozen=True)
class Settings:
    """zero_stage 0: no DeepSpeed. offload: DeepSpeed keeps optimizer state, under ZeRO-3 weights, too, in CPU memory.

    share_base, offload_reference, offload_reward: of rlhf. dtype: of weights without DeepSpeed (it casts them itself).
    config_file: DeepSpeed's configuration, where it is none of the repository's.
    """

    token_budget: int
    bf16: bool = True
    dtype: str = "float32"
    use_peft: bool = False
    activation_checkpointing: bool = False
    zero_stage: int = 0
    offload: bool = False
    share_base: bool = False
    offload_reference: bool = False
    offload_reward: bool = False
    config_file: str | None = None

    @property
    def offloaded(self) -> set[str]:
        """Frozen models that stay in CPU memory between their passes."""
        return {name for name, away in ((REFERENCE, self.offload_reference), (REWARD, self.offload_reward)) if away}

    @property
    def deepspeed_config(self) -> str | None:
        """Path from examples/configs."""
        if self.config_file:
            return self.config_file
        return f"deepspeed/zero{self.zero_stage}{'_offload' * self.offload}.json" if self.zero_stage else None

    @property
    def weights(self) -> str:
        """The dtype that the model itself has in a run."""
        return "bfloat16" if self.zero_stage and self.bf16 else self.dtype

    @property
    def width(self) -> int:
        """Bytes of a weight under DeepSpeed."""
        return 2 if self.bf16 else 4

    @property
    def autocast(self) -> bool:
        return self.bf16 and not self.zero_stage

    def describe(self) -> str:
        """In a few words, for people; the token budget is not among them."""
        parts = [
            "LoRA" if self.use_peft else "shared base" if self.share_base else "all weights",
            "bf16" if self.bf16 else "float32",
            *(["bf16 weights"] if self.dtype == "bfloat16" else []),
            *([f"ZeRO-{self.zero_stage}"] if self.zero_stage else []),
            *(["offload"] if self.offload else []),
            *([f"{' and '.join(sorted(self.offloaded))} on CPU"] if self.offloaded else []),
            *(["checkpointing"] if self.activation_checkpointing else []),
        ]
        return ", ".join(parts)

    def command(self, stage: str, model: str, num_gpus: int, workload: Workload, *, lora_r: int = 8) -> str:
        """What to type: variables of the script, and flags that differ from the stage's defaults."""
        words = [f"MODEL={model}"]
        if stage != "rlhf" or num_gpus > 1:
            words.append(f"NUM_GPUS={num_gpus}")
        if self.deepspeed_config:
            words.append(f"DEEPSPEED_CONFIG={Path('examples/configs') / self.deepspeed_config}")
        words.append(f"bash examples/{stages()[stage].script}.sh --token_budget {self.token_budget}")
        if stage == "rlhf":
            names = ("max_prompt_length", "max_new_tokens", "num_responses", "rollout_batch_size", "num_mini_batches")
            names += ("generation_batch_size",)
        else:
            names = ("max_length", "per_device_train_batch_size")
        words += [f"--{name} {getattr(workload, name)}" for name in names]
        given = ("bf16", "use_peft", "activation_checkpointing", "share_base", "offload_reference", "offload_reward")
        words += [f"--{name}" for name in given if getattr(self, name)]
        if self.dtype != "float32" and not self.zero_stage:
            words.append(f"--dtype {self.dtype}")
        if (self.use_peft or self.share_base) and lora_r != 8:
            words.append(f"--lora_r {lora_r}")
        return " ".join(words)


def ladder(
    stage: str,
    num_gpus: int,
    token_budget: int,
    *,
    bf16: bool = True,
    use_peft: bool | None = None,
    activation_checkpointing: bool | None = None,
    zero_stage: int | None = None,
    offload: bool | None = None,
    smallest_budget: int = 1,
    on_gpu: bool = True,
) -> Iterator[Settings]:
    """Settings from the fastest to the most frugal; None: whatever fits. LoRA comes after all ways to train everything,
    rows of half as many tokens, down to `smallest_budget`, at the end."""
    first = Settings(token_budget, bf16)
    if stage == "rlhf":
        ways = list(_ways_of_policy(first) if num_gpus == 1 else _ways_of_policies(first))
    else:
        ways = [way for adapters in (False, True) for way in _ways(replace(first, use_peft=adapters), num_gpus)]
    ways = [
        way
        for way in ways
        if use_peft in (None, way.use_peft or way.share_base)
        and activation_checkpointing in (None, way.activation_checkpointing)
        and zero_stage in (None, way.zero_stage)
        and offload in (None, way.offload)
        and (on_gpu or not way.offloaded)  # CPU memory is where they are already
    ]
    yield from ways
    while ways and (token_budget := token_budget // 2) >= smallest_budget:
        yield replace(ways[-1], token_budget=token_budget)


def _ways(first: Settings, num_gpus: int) -> Iterator[Settings]:
    if num_gpus == 1:
        # Frozen weights need no float32 copy.
        plain = replace(first, dtype="bfloat16") if first.use_peft and first.bf16 else first
        yield plain
        yield replace(plain, activation_checkpointing=True)
        stages = ((2, True), (3, True))
    else:
        stages = ZERO
    for zero_stage, offload in stages:
        for checkpointing in (False, True):
            yield replace(first, zero_stage=zero_stage, offload=offload, activation_checkpointing=checkpointing)


def _ways_of_policy(first: Settings) -> Iterator[Settings]:
    """One process, four models."""
    yield first
    yield replace(first, offload_reference=True)
    yield replace(first, offload_reference=True, offload_reward=True)
    shared = replace(first, share_base=True)
    yield shared
    yield replace(shared, offload_reward=True)
    if first.bf16:
        yield replace(shared, dtype="bfloat16")
        yield replace(shared, dtype="bfloat16", offload_reward=True)


def _ways_of_policies(first: Settings) -> Iterator[Settings]:
    """Several processes. Up to ZeRO-2 frozen models are whole on each device, or in CPU memory between their passes."""
    for share_base in (False, True):
        for zero_stage, offload in ZERO:
            way = replace(first, share_base=share_base, zero_stage=zero_stage, offload=offload)
            yield way
            if zero_stage == 2:
                yield replace(way, offload_reference=not share_base, offload_reward=True)

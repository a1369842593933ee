"""The plan against the memory that real steps take on the CPU: peak resident memory above that after the imports.

python tests/bench/plan.py

The plan rehearses each step without memory. The real steps are those of the stages' trainers, on models of 20 to 25
million parameters, each in a fresh process whose allocator gives back at once what is freed; those of ZeRO in two
processes through DeepSpeed's launcher, with buckets that are small like the models. The last line is JSON:
`largest_error`, by how much the plan was off at most, as a share of what was measured.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from measured_memory import measured, step_of, write_config

from keju.planning.memory import memory
from keju.planning.rehearsal import rehearse
from keju.planning.settings import Settings

MODELS = {
    "llama-tiny": {
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 8000,
    },
    "pangu-tiny": {"hidden_size": 512, "num_layers": 6, "num_heads": 8, "vocab_size": 8000},
}
WORK = {"token_budget": 1024, "max_length": 256, "max_prompt_length": 128, "num_responses": 3}
ROLLOUT = {
    "max_new_tokens": 64,
    "num_responses": 4,
    "rollout_batch_size": 8,
    "num_mini_batches": 4,
    "generation_batch_size": 32,
}
ZERO = {
    "overlap_comm": False,
    "contiguous_gradients": True,
    "reduce_bucket_size": 2_000_000,
    "stage3_prefetch_bucket_size": 1_000_000,
    "stage3_max_reuse_distance": 4_000_000,
}
STEPS = {
    "pretrain": {"stage": "pretrain"},
    "sft": {"stage": "sft"},
    "sft, bf16": {"stage": "sft", "autocast": True},
    "sft, LoRA": {"stage": "sft", "use_peft": True},
    "sft, checkpointing": {"stage": "sft", "activation_checkpointing": True},
    "reward": {"stage": "reward"},
    "dpo": {"stage": "dpo"},
    "rlhf": {"stage": "rlhf"},
    "sft, ZeRO-2": {"stage": "sft", "zero": ZERO | {"stage": 2}},
    "sft, ZeRO-3": {"stage": "sft", "zero": ZERO | {"stage": 3}},
    "sft, ZeRO-2, checkpointing": {"stage": "sft", "activation_checkpointing": True, "zero": ZERO | {"stage": 2}},
    "sft, ZeRO-3, checkpointing": {"stage": "sft", "activation_checkpointing": True, "zero": ZERO | {"stage": 3}},
}


def case(model: str, name: str) -> dict:
    """What measured_memory takes."""
    work = WORK | (ROLLOUT if name == "rlhf" else {})
    return {"model": model, "overrides": MODELS[model], "workload": work, **STEPS[name]}


def planned(chosen: dict) -> int:
    """Bytes"""
    found = rehearse(step_of(chosen))
    if "zero" not in chosen:
        return max(sum(moment.sizes) for moment in found.moments)
    with tempfile.TemporaryDirectory() as folder:
        path = str(write_config(chosen["zero"], Path(folder)))
        settings = Settings(
            chosen["workload"]["token_budget"],
            bf16=chosen.get("dtype") == "bfloat16",
            zero_stage=chosen["zero"]["stage"],
            config_file=path,
        )
        return memory(found, settings, 2).total


def main() -> None:
    errors = {}
    print(f"{'':32}{'planned':>10}{'measured':>10}{'error':>8}")
    for model in MODELS:
        for name in STEPS:
            chosen = case(model, name)
            plan, peak = planned(chosen), measured(chosen)
            errors[model, name] = plan / peak - 1
            sizes = f"{plan / 2**20:6.0f} MiB{peak / 2**20:6.0f} MiB{errors[model, name]:+8.1%}"
            print(f"{model + ', ' + name:32}{sizes}", flush=True)
    largest = max(abs(error) for error in errors.values())
    print(json.dumps({"name": "plan", "largest_error": round(largest, 3), "cases": len(errors)}))


if __name__ == "__main__":
    main()

"""Two trainers on the same records in one process: first the same losses, then both speeds, in turns.

Every benchmark of this folder prints, as its last line, JSON {"name", "ours", "peer", "ratio", "unit"}.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback

from keju.models import attention

WARM_UP_STEPS = 2


def arguments(description: str, **defaults: int) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    options = {"steps": 4, "rounds": 2, "threads": 2, "hidden_size": 512, "layers": 8, "vocab_size": 8000, **defaults}
    for name, value in options.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    return args


def tiny_llama(args: argparse.Namespace) -> LlamaForCausalLM:
    """30M parameters by default; the same weights every time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=args.vocab_size,
        hidden_size=args.hidden_size,
        intermediate_size=args.hidden_size * 8 // 3 // 32 * 32,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden_size // 64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )
    return LlamaForCausalLM(config).float()


def with_attention(model, name: str):
    """`attention.NAME` for ours, "sdpa" (transformers' default) for the peer."""
    model.set_attn_implementation(name)
    return model


def ours(model):
    return with_attention(model, attention.NAME)


def word_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Records come as ids; the peers' trainers want a tokenizer object all the same."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3} | {f"t{index}": index for index in range(4, vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def common_settings(folder: str, steps: int) -> dict:
    """What both trainers get: float32, the same optimizer and schedule, nothing but training."""
    return {
        "output_dir": folder,
        "max_steps": steps,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "optim": "adamw_torch_fused",
        "logging_steps": 1,
        "logging_strategy": "steps",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": False,
        "use_cpu": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "seed": 0,
    }


@dataclass
class StepClock(TrainerCallback):
    """Seconds of each optimizer step after the warm-up, batch loading included."""

    ends: list[float] = field(default_factory=list)

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(time.perf_counter())

    def seconds(self) -> list[float]:
        steps = [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]
        return steps[WARM_UP_STEPS - 1 :]


def losses_of(trainer) -> list[float]:
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def compare(
    name: str,
    build_ours: Callable[[str, int], transformers.Trainer],
    build_peer: Callable[[str, int], transformers.Trainer],
    *,
    items_per_step: float,
    unit: str,
    args: argparse.Namespace,
    tolerance: float = 1e-3,
) -> None:
    """`build_*(folder, steps)` makes a fresh trainer over a fresh model. Raises AssertionError when losses differ."""
    with tempfile.TemporaryDirectory() as folder:
        a = losses_of(build_ours(f"{folder}/a", 4))
        b = losses_of(build_peer(f"{folder}/b", 4))
        print(f"{name}: losses of the first steps, ours {a}, peer {b}")
        assert all(abs(x - y) <= tolerance * max(1, abs(y)) for x, y in zip(a, b, strict=True)), "losses differ"
        times: dict[str, list[float]] = {"ours": [], "peer": []}
        for number in range(args.rounds):
            for side, build in (("ours", build_ours), ("peer", build_peer)):
                trainer = build(f"{folder}/{side}{number}", args.steps + WARM_UP_STEPS)
                clock = StepClock()
                trainer.add_callback(clock)
                trainer.train()
                times[side] += clock.seconds()
                median = statistics.median(clock.seconds())
                print(f"round {number + 1}, {side}: {items_per_step / median:.2f} {unit}", flush=True)
    speeds = {side: items_per_step / statistics.median(seconds) for side, seconds in times.items()}
    report(name, speeds["ours"], speeds["peer"], unit)


def report(name: str, ours: float, peer: float, unit: str) -> None:
    line = {"name": name, "ours": round(ours, 3), "peer": round(peer, 3), "ratio": round(ours / peer, 2), "unit": unit}
    print(json.dumps(line))


def shared_folder() -> Path:
    return Path(__file__).resolve().parents[3] / "shared"

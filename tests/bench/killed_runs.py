"""The runs that kill.py kills: a tiny model, records of every kind, and the command of each stage."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from char_tokenizer import CHARACTERS, build_char_tokenizer
from free_port import free_port
from tiny_models import build_llama, build_pangu, build_scalar_model

from keju.models.loading import load_scalar_model
from keju.records.writing import write_jsonl
from keju.training.adapters import add_lora

ZERO2 = Path(__file__).resolve().parents[2] / "examples" / "configs" / "deepspeed" / "zero2.json"
TRAINER = {
    "max_length": 64,
    "token_budget": 64,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "eval_strategy": "no",
    "optim": "adamw_torch",
}
PPO = {
    "rollout_batch_size": 4,
    "num_responses": 2,
    "num_mini_batches": 2,
    "max_new_tokens": 8,
    "token_budget": 128,
    "max_eval_samples": 3,
    "actor_learning_rate": 1e-3,
    "critic_learning_rate": 1e-3,
    "ema_decay": 0.9,
    "kl_target": 0.05,
    "kl_horizon": 100,
    "allow_unfinished": "true",
}
GRPO = {
    "rollout_batch_size": 4,
    "num_responses": 2,
    "max_new_tokens": 8,
    "token_budget": 128,
    "max_eval_samples": 3,
    "learning_rate": 1e-3,
}
STAGES = {
    **dict.fromkeys(("pretrain", "sft", "reward", "dpo"), TRAINER),
    "kto": TRAINER | {"loss_type": "kto"},
    "rlhf": PPO,
    "grpo": GRPO,
}
MODULES = {"pretrain": "pretrain", "kto": "train_dpo"}  # the others: train_<stage>
SAVE_STEPS = 2
# With dropout, where a family has it: then the state of the random generators matters, too.
FAMILIES = {"llama": build_llama, "pangu": lambda size: build_pangu(size, resid_pdrop=0.1, embd_pdrop=0.1)}
TIMING = {
    *("elapsed", "tokens_per_second", "seconds_rollout", "seconds_scoring", "seconds_update"),
    *("step_time", "eval_runtime"),
}


@dataclass(frozen=True)
class Series:
    """The runs of one stage over the models and records in `folder`: `steps` long, or `epochs` where that is given.

    evaluated: there is a final evaluation, in every stage.
    """

    stage: str
    folder: Path
    steps: int
    peft: bool = False
    processes: int = 1
    epochs: float | None = None
    evaluated: bool = False

    def command(self, output: Path, *more: str) -> list[str]:
        flags = {
            "model_name_or_path": self.folder / "model",
            "data_dir": self.folder,
            "output_dir": output,
            **({"num_train_epochs": self.epochs} if self.epochs else {"max_steps": self.steps}),
            "save_strategy": "steps",
            "save_steps": SAVE_STEPS,
            **STAGES[self.stage],
        }
        if self.stage not in ("rlhf", "grpo"):
            held_out = "pretrain_dev.jsonl" if self.stage == "pretrain" else "ranked_dev.jsonl"
            flags["eval_filename"] = held_out if self.evaluated else ""
        if self.stage in ("rlhf", "grpo"):
            flags["reward_model_path"] = self.folder / ("reward_adapters" if self.peft else "reward")
        if self.stage in ("dpo", "kto"):
            flags["reference_cache_dir"] = output.with_name(f"{output.name}_reference")
        if self.peft:
            flags |= {"share_base": "true"} if self.stage == "rlhf" else {"use_peft": "true", "lora_dropout": 0.1}
        if self.processes > 1:
            flags["deepspeed"] = ZERO2
        module = "keju." + MODULES.get(self.stage, f"train_{self.stage}")
        return [
            *self._launcher(),
            module,
            "--use_cpu",
            *(str(x) for k, v in flags.items() for x in (f"--{k}", v)),
            *more,
        ]

    def _launcher(self) -> list[str]:
        if self.processes == 1:
            return [sys.executable, "-m"]
        ranks = ["--num_gpus", str(self.processes), "--master_addr", "127.0.0.1", "--master_port", free_port()]
        return [sys.executable, "-m", "deepspeed.launcher.runner", *ranks, "--module"]


def make_inputs(folder: Path, family: str = "llama") -> None:
    """A model, reward models (whole, and adapters on the model), and records of every kind."""
    tokenizer = build_char_tokenizer()
    actor = FAMILIES[family](len(tokenizer))
    actor.get_output_embeddings().weight.data[tokenizer.eos_token_id] *= 4  # so that some responses end
    reward = build_scalar_model(FAMILIES[family](len(tokenizer)), seed=2)
    for name, model in (("model", actor), ("reward", reward)):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    torch.manual_seed(3)
    adapted = load_scalar_model(str(folder / "model")).requires_grad_(False)
    add_lora(adapted, task_type="SEQ_CLS", r=4, alpha=8).save_pretrained(folder / "reward_adapters")
    tokenizer.save_pretrained(folder / "reward_adapters")
    rng = random.Random(0)

    def text(length: int) -> str:
        return "".join(rng.choices(CHARACTERS, k=length))

    ranked = [
        {"prompt": text(6), "answers": [{"answer": text(rng.randint(1, 9)), "score": score} for score in (1, 0)]}
        for _ in range(48)
    ]
    for name in ("ranked_train.jsonl", "ranked_dev.jsonl", "prompts_train.jsonl"):
        write_jsonl(folder / name, ranked)
    for name in ("pretrain_train.jsonl", "pretrain_dev.jsonl"):
        write_jsonl(folder / name, [{"text": text(30)} for _ in range(48)])

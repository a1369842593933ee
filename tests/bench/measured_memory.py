"""A real step of a stage on the CPU, and the resident memory that it took at its peak; one case a process, or two
processes under DeepSpeed.

Nothing is taken from the plan but what a step is (keju.planning.step) and how long its records are.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from accelerate.state import AcceleratorState
from free_port import free_port
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from keju.models import attention
from keju.models.decoding import decode
from keju.planning.step import Step, model_config
from keju.planning.workload import Workload
from keju.rl.experience import RewardShaping
from keju.rl.ppo_trainer import PPOTrainer
from keju.rl.rewards import FixedKLController, RunningMoments
from keju.rl.rollout import Sampler
from keju.stages.spec import stages
from keju.training.adapters import add_lora
from keju.training.arguments import StageTrainingArguments
from keju.training.processes import start_deepspeed
from keju.training.tree_trainer import TreeTrainer

# What is freed goes back to the system at once, so that resident memory is memory in use.
ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "OMP_NUM_THREADS": "1",
    "DS_ACCELERATOR": "cpu",
}
# A step of a model like this imports and sets up whatever a step needs.
SMALL = {"hidden_size": 32, "vocab_size": 128}


def measured(case: dict) -> int:
    """Bytes of resident memory that the steps of a case take at their peak, measured in fresh processes.

    Under DeepSpeed (`zero` in the case: a stage, and what else its section says) that of the larger of two processes.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable]
        if "zero" in case:
            command = [
                sys.executable,
                "-m",
                "deepspeed.launcher.runner",
                "--num_gpus",
                "2",
                "--master_port",
                free_port(),
            ]
            case = case | {"deepspeed": str(write_config(case["zero"], Path(folder)))}
        command += [__file__, json.dumps(case), folder]
        subprocess.run(command, env={**os.environ, **ENVIRONMENT}, stdout=subprocess.DEVNULL, check=True)
        return max(json.loads(path.read_text())["peak"] for path in Path(folder).glob("peak-*.json"))


def write_config(zero: dict, folder: Path) -> Path:
    """A configuration of DeepSpeed like those of the examples; zero: its section on ZeRO."""
    names = ("gradient_accumulation_steps", "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_clipping")
    config = dict.fromkeys(names, "auto") | {"zero_optimization": zero, "bf16": {"enabled": "auto"}}
    path = folder / "deepspeed.json"
    path.write_text(json.dumps(config))
    return path


def step_of(case: dict, **overrides: object) -> Step:
    """case: the model's name, `overrides` of its configuration, `workload`, and fields of a Step."""
    names = {item.name for item in fields(Step)} - {"config", "workload"}
    settings = {name: value for name, value in case.items() if name in names}
    config = model_config(case["model"], case["overrides"] | overrides)
    return Step(config=config, workload=Workload(**case["workload"]), on_gpu=False, **settings)


def resident() -> int:
    """Bytes"""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def most_resident() -> int:
    """Bytes, at any time so far. Not getrusage's, which begins with what the process had that started this one."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 2**10


def run(step: Step, deepspeed: str | None) -> None:
    """Two optimizer steps, as the stage takes them. deepspeed: a configuration file."""
    if step.stage == "rlhf":
        optimize_policy(step)
        return
    with tempfile.TemporaryDirectory() as folder:
        arguments = StageTrainingArguments(
            output_dir=folder,
            use_cpu=True,
            max_steps=2,
            save_strategy="no",
            bf16=step.autocast or step.dtype == "bfloat16",
            activation_checkpointing=step.activation_checkpointing,
            per_device_train_batch_size=step.workload.per_device_train_batch_size,
            deepspeed=deepspeed,
        )
        # Made after the arguments: ZeRO-3 cuts weights up as they come.
        model = make_model(step, scalar=step.stage == "reward")
        if step.use_peft:
            kind = "SEQ_CLS" if step.stage == "reward" else "CAUSAL_LM"
            model = add_lora(model, task_type=kind, r=step.lora_r, alpha=2 * step.lora_r)
        trees = step.workload.trees(step.stage, step.config.vocab_size)
        budget = step.workload.token_budget
        copies = 2 * int(os.environ.get("WORLD_SIZE", "1"))
        objective = stages()[step.stage].make_objective()
        TreeTrainer(model, objective, arguments, trees * copies, token_budget=budget).train()


def make_model(step: Step, *, scalar: bool) -> torch.nn.Module:
    kind = AutoModelForSequenceClassification if scalar else AutoModelForCausalLM
    config = copy.deepcopy(step.config)
    if scalar:
        config.num_labels = 1
    return kind.from_config(config, dtype=torch.float32, attn_implementation=attention.NAME)


def optimize_policy(step: Step) -> None:
    work = step.workload
    actor, reference = (make_model(step, scalar=False) for _ in range(2))
    critic, judge = (make_model(step, scalar=True) for _ in range(2))
    rollouts = work.rollouts(step.config.vocab_size)
    trainer = PPOTrainer(
        actor=actor,
        critic=critic,
        reference=reference,
        reward_model=judge,
        sampler=Sampler(SimpleNamespace(pad_token_id=0), work.num_responses, work.max_new_tokens),
        shaping=RewardShaping(kl_controller=FixedKLController(0.1), moments=RunningMoments()),
        prompts=[rollout.prompt for rollout in rollouts],
        max_steps=2,
        rollout_batch_size=work.rollout_batch_size,
        num_mini_batches=work.num_mini_batches,
        token_budget=work.token_budget,
        bf16=step.autocast,
    )
    count = -(-work.rollout_batch_size // work.num_mini_batches)
    for _ in range(2):
        decode(
            actor,
            [rollout.prompt for rollout in rollouts[: max(1, work.generation_batch_size // work.num_responses)]],
            num_responses=work.num_responses,
            max_new_tokens=work.max_new_tokens,
            stop_ids=[-1],
            pad_id=0,
            choose=lambda logits, rows, step: logits.float().softmax(-1).double().cumsum(-1).argmax(-1),
        )
        experience = trainer.shaping.experience(trainer.score(rollouts))
        trainer.update(experience, experience.trees[:count])


def main() -> None:
    case, folder = json.loads(sys.argv[-2]), Path(sys.argv[-1])
    config = case.get("deepspeed")
    if config:
        start_deepspeed()
    torch.manual_seed(0)
    run(step_of(case, **SMALL), config)
    gc.collect()
    AcceleratorState._reset_state()  # the next trainer sets DeepSpeed up anew
    before = resident()
    run(step_of(case), config)
    peak = most_resident() - before
    path = folder / f"peak-{os.environ.get('RANK', '0')}.json"
    path.write_text(json.dumps({"peak": peak, "before": before}))


if __name__ == "__main__":
    main()

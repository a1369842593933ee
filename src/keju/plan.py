"""Plans a run before it is launched: what each device would hold, whether that fits, and what to type.

python -m keju.plan --model_name_or_path llama-7B --stage sft --gpu_memory 80 --num_gpus 8
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal

from rich.console import Console
from rich.table import Table

from keju.errors import UserError
from keju.planning.allocations import ACTIVATIONS, CACHE, FROZEN, GRADIENTS, LOGITS, OPTIMIZER, PARAMETERS
from keju.planning.memory import BUFFERS, ROWS, Memory, memory
from keju.planning.rehearsal import Rehearsal, rehearse
from keju.planning.settings import Settings, ladder
from keju.planning.step import Step, model_config
from keju.planning.workload import Workload
from keju.records.writing import write_text
from keju.stages.spec import stages_with
from keju.training.arguments import BASE_MODEL_HELP, parse_arguments
from keju.training.launch import run_stage
from keju.training.plots import plot_stacks
from keju.training.ranges import Fraction, PositiveFloat, PositiveInt, between
from keju.training.stage_arguments import parse_overrides

GIB = 2**30
WIDTH = 180  # of the table, also where the terminal is narrower: it would cut off the figures
HEADERS = {
    PARAMETERS: "weights",
    FROZEN: "frozen",
    GRADIENTS: "grads",
    OPTIMIZER: "optimizer",
    ACTIVATIONS: "activations",
    LOGITS: "logits",
    CACHE: "KV cache",
    BUFFERS: "buffers",
}


@dataclass
class PlanArguments:
    """What is to be run, and on what."""

    _argument_group_name = "plan"

    model_name_or_path: str = field(metadata={"help": "Checkpoint folder, hub name, or a built-in size."})
    stage: str = field(
        default="sft",
        metadata={
            "help": "The stage to plan. All models of rlhf are taken to be of this size.",
            "choices": stages_with("plan"),
        },
    )
    gpu_memory: PositiveFloat = field(
        default=80.0, metadata={"help": "Memory of one GPU in GiB (with --use_cpu: of the CPU)."}
    )
    num_gpus: PositiveInt = field(default=1, metadata={"help": "GPUs."})
    margin: Fraction = field(
        default=0.1,
        metadata={"help": "Share of the memory that is left free, for CUDA's own, NCCL and fragmentation."},
    )
    base_model: str | None = field(default=None, metadata={"help": BASE_MODEL_HELP})
    config_overrides: str = field(
        default="", metadata={"help": "Changes to the model's configuration, as vocab_size=50000,num_hidden_layers=4."}
    )
    precision: Literal["bf16", "float32"] = field(default="bf16", metadata={"help": "What is computed in."})
    use_peft: bool | None = field(
        default=None, metadata={"help": "true: LoRA (rlhf: --share_base); false: all weights; by default what fits."}
    )
    lora_r: PositiveInt = field(default=8, metadata={"help": "Rank of the adapters."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Layers that get adapters; all linear layers by default."}
    )
    activation_checkpointing: bool | None = field(
        default=None, metadata={"help": "Recompute activations: always, never, or by default where it is needed."}
    )
    zero_stage: Annotated[int, between(0, 3)] | None = field(
        default=None, metadata={"help": "0 (no DeepSpeed), 1, 2 or 3; by default what fits."}
    )
    offload: bool | None = field(
        default=None, metadata={"help": "DeepSpeed's offload to CPU memory: always, never, or where it is needed."}
    )
    use_cpu: bool = field(default=False, metadata={"help": "Plan a run without a GPU: plain torch and no kernels."})
    json: bool = field(default=False, metadata={"help": "Print JSON alone."})
    output_dir: str | None = field(default=None, metadata={"help": "Folder for plan.json and plan.png."})

    def __post_init__(self):
        if self.num_gpus > 1 and self.use_cpu:
            raise UserError("--use_cpu: is planned for one process; leave --num_gpus at 1")
        parse_overrides(self.config_overrides)


@dataclass
class WorkArguments:
    """How much is computed at once; the flags of the stages."""

    _argument_group_name = "work"

    token_budget: PositiveInt = field(default=4096, metadata={"help": "Tokens of one packed row."})
    per_device_train_batch_size: PositiveInt = field(default=8, metadata={"help": "Records of one packed row at most."})
    max_length: PositiveInt = field(default=512, metadata={"help": "Tokens of a text, or of a prompt and one answer."})
    max_prompt_length: PositiveInt = field(default=256, metadata={"help": "Tokens of a prompt."})
    max_new_tokens: PositiveInt = field(default=256, metadata={"help": "Tokens of a response (rlhf)."})
    num_responses: PositiveInt = field(
        default=4, metadata={"help": "Answers of a prompt: ranked ones, or sampled (rlhf)."}
    )
    rollout_batch_size: PositiveInt = field(default=16, metadata={"help": "Prompts of a rollout (rlhf)."})
    num_mini_batches: PositiveInt = field(default=4, metadata={"help": "Optimizer steps of a rollout (rlhf)."})
    generation_batch_size: PositiveInt = field(default=64, metadata={"help": "Responses generated at once (rlhf)."})

    def __post_init__(self):
        self.workload()

    def workload(self, **changes: int) -> Workload:
        return Workload(**{item.name: getattr(self, item.name) for item in fields(Workload)} | changes)


@dataclass(frozen=True)
class Tried:
    settings: Settings
    memory: Memory
    fits: bool


def main() -> None:
    plan, work = parse_arguments(PlanArguments, WorkArguments, description=__doc__)
    tried = []
    console = Console(stderr=plan.json)
    with console.status("rehearsing"):
        for one in attempts(plan, work):
            tried.append(one)
            if one.fits:
                break
    if not tried:
        raise UserError(f"--zero_stage, --offload: no way to run {plan.stage} on {plan.num_gpus} GPU(s) has these")
    found = report(plan, work, tried)
    text = json.dumps(found, ensure_ascii=False, indent=2)
    if plan.output_dir:
        folder = Path(plan.output_dir).expanduser()
        write_text(folder / "plan.json", text + "\n")
        draw(plan, tried, folder / "plan.png")
    if plan.json:
        print(text)
        return
    console.width = max(console.width, WIDTH)
    print(f"{plan.model_name_or_path}, {plan.stage}: GiB on each of {plan.num_gpus} x {plan.gpu_memory:g} GiB")
    console.print(table(tried))
    for kind, size in tried[-1].memory.cpu.items():
        print(f"In CPU memory, of each process: {kind}, {size / GIB:.1f} GiB.")
    if found["command"]:
        print(f"The most is held during: {tried[-1].memory.phase}. To be run as:\n\n{found['command']}\n")
    else:
        print(f"Nothing that was tried fits {plan.gpu_memory:g} GiB.", file=sys.stderr)
        print("More GPUs, a smaller model, or a smaller --max_length are what is left.")


def attempts(plan: PlanArguments, work: WorkArguments) -> Iterator[Tried]:
    """Each way to run in its turn; a rehearsal is made once for all that it serves."""
    config = model_config(plan.model_name_or_path, parse_overrides(plan.config_overrides), plan.base_model)
    rehearsed: dict[tuple, Rehearsal] = {}
    limit = plan.gpu_memory * GIB * (1 - plan.margin)
    work.workload().check(plan.stage)
    for settings in ladder(
        plan.stage,
        plan.num_gpus,
        work.token_budget,
        bf16=plan.precision == "bf16",
        use_peft=plan.use_peft,
        activation_checkpointing=plan.activation_checkpointing,
        zero_stage=0 if plan.use_cpu else plan.zero_stage,
        offload=plan.offload,
        smallest_budget=work.workload().longest(plan.stage),
        on_gpu=not plan.use_cpu,
    ):
        key = (
            settings.weights,
            settings.autocast,
            settings.use_peft,
            settings.activation_checkpointing,
            settings.share_base,
            settings.token_budget,
        )
        if key not in rehearsed:
            rehearsed[key] = rehearse(
                Step(
                    stage=plan.stage,
                    config=config,
                    workload=work.workload(token_budget=settings.token_budget),
                    dtype=settings.weights,
                    autocast=settings.autocast,
                    use_peft=settings.use_peft,
                    lora_r=plan.lora_r,
                    lora_target_modules=plan.lora_target_modules,
                    activation_checkpointing=settings.activation_checkpointing,
                    share_base=settings.share_base,
                    on_gpu=not plan.use_cpu,
                    num_processes=plan.num_gpus,
                )
            )
        needed = memory(rehearsed[key], settings, plan.num_gpus)
        yield Tried(settings, needed, needed.total <= limit)


def report(plan: PlanArguments, work: WorkArguments, tried: list[Tried]) -> dict:
    """What plan.json holds; sizes in bytes. command: None where nothing fits."""
    last = tried[-1]
    command = None
    if last.fits:
        model, workload = plan.model_name_or_path, work.workload()
        command = last.settings.command(plan.stage, model, plan.num_gpus, workload, lora_r=plan.lora_r)
    return {
        "arguments": vars(plan) | vars(work),
        "command": command,
        "tried": [
            {
                "settings": vars(one.settings),
                "phase": one.memory.phase,
                "device": one.memory.device,
                "total": one.memory.total,
                "cpu": one.memory.cpu,
                "fits": one.fits,
            }
            for one in tried
        ],
    }


def table(tried: list[Tried]) -> Table:
    """A row for each way to run, GiB a device by kind."""
    found = Table(box=None, pad_edge=False)
    shown = [kind for kind in ROWS if any(one.memory.device.get(kind) for one in tried)]
    found.add_column("", no_wrap=True)
    for header in ("tokens", *(HEADERS[kind] for kind in shown), "total", "on CPU", "fits"):
        found.add_column(header, justify="right", no_wrap=True)
    for one in tried:
        sizes = [one.memory.device.get(kind, 0) for kind in shown]
        sizes += [one.memory.total, sum(one.memory.cpu.values())]
        cells = [f"{size / GIB:.1f}" if size else "-" for size in sizes]
        settings = one.settings
        found.add_row(settings.describe(), str(settings.token_budget), *cells, "yes" if one.fits else "no")
    return found


def draw(plan: PlanArguments, tried: list[Tried], png: Path) -> None:
    stacks = {
        f"{one.settings.describe()}, {one.settings.token_budget} tokens": {
            kind: size / GIB for kind, size in one.memory.device.items()
        }
        for one in tried
    }
    plot_stacks(
        stacks,
        png,
        title=f"{plan.model_name_or_path}, {plan.stage}, {plan.num_gpus} GPU(s)",
        xlabel="GiB on a device",
        limits={"memory": plan.gpu_memory, "without the margin": plan.gpu_memory * (1 - plan.margin)},
    )


if __name__ == "__main__":
    run_stage(main)

"""Runs that are killed at random moments, in the middle of saving, too, and end as one that was not.

python tests/bench/kill.py --stage rlhf --kills 10

A tiny run of the stage goes through once; then the same run is killed (SIGKILL) so many times, and resumed each time
with --resume_from_checkpoint auto. Every second kill waits for a save to begin, the others come at a random moment of
the training, of the start of the process, or of its end. Weights must be bit-equal to those of the unbroken run, and so
must the rows of metrics.jsonl. The last line is JSON: {"name", "kills", "bit_equal", "lost_steps_max"}; steps are lost
that came after the last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from char_tokenizer import CHARACTERS, build_char_tokenizer
from safetensors.torch import load_file
from tiny_models import build_llama, build_pangu, build_scalar_model

from keju.models.loading import load_scalar_model
from keju.records.writing import write_jsonl
from keju.training.adapters import add_lora
from keju.training.checkpoints import checkpoints

ZERO2 = Path(__file__).resolve().parents[2] / "examples" / "configs" / "deepspeed" / "zero2.json"
TRAINER = {
    "max_length": 64,
    "token_budget": 64,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "eval_strategy": "no",
    "eval_filename": "",
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
TIMING = {"elapsed", "tokens_per_second", "seconds_rollout", "seconds_scoring", "seconds_update", "step_time"}


@dataclass(frozen=True)
class Series:
    """The runs of one stage over the models and records in `folder`."""

    stage: str
    folder: Path
    steps: int
    peft: bool = False
    processes: int = 1

    def command(self, output: Path, *more: str) -> list[str]:
        flags = {
            "model_name_or_path": self.folder / "model",
            "data_dir": self.folder,
            "output_dir": output,
            "max_steps": self.steps,
            "save_strategy": "steps",
            "save_steps": SAVE_STEPS,
            **STAGES[self.stage],
        }
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
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        ranks = ["--num_gpus", str(self.processes), "--master_addr", "127.0.0.1", "--master_port", port]
        return [sys.executable, "-m", "deepspeed.launcher.runner", *ranks, "--module"]


@dataclass
class Pace:
    """Seconds of the unbroken run: up to its first step, of a step with its share of saving, of a save, of its end."""

    start: float
    step: float
    save: float
    end: float


@dataclass
class Outcome:
    bit_equal: bool
    rows_equal: bool
    kills: int = 0
    kills_in_save: int = 0
    lost_steps_max: int = 0
    moments: Counter[str] = field(default_factory=Counter)


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
    write_jsonl(folder / "pretrain_train.jsonl", [{"text": text(30)} for _ in range(48)])


@contextmanager
def started(argv: list[str], log: Path) -> Iterator[subprocess.Popen]:
    """A run in a process group of its own, which is gone when the block ends."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            argv, stdout=file, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True
        )
    try:
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen) -> None:
    """SIGKILL for the launcher and for every process that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def check_finished(process: subprocess.Popen, run: Path, log: Path) -> None:
    """Raises RuntimeError unless the run went through to its end; a SIGTERM from elsewhere ends one with 0, too."""
    if process.returncode or not (run / "summary.json").is_file():
        said = log.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{run} did not finish (exit code {process.returncode}); see {log}:\n{said}")


def logged_step(run: Path, since: int = 0) -> int:
    """The last step in metrics.jsonl, if that was written to after `since` (ns); 0 otherwise."""
    path = run / "metrics.jsonl"
    try:
        if path.stat().st_mtime_ns < since:
            return 0  # of the process before
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))
            lines = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return 0
    return next((json.loads(line)["step"] for line in reversed(lines) if line[:1] == "{" and line[-1:] == "}"), 0)


def is_saving(run: Path, since: int = 0) -> bool:
    """Whether a checkpoint that was begun after `since` (ns) is not finished."""
    for aside in run.glob(".checkpoint-*"):
        try:
            if aside.stat().st_mtime_ns >= since:
                return True
        except FileNotFoundError:
            continue  # finished just now
    return False


def checkpoint_step(run: Path) -> int:
    return max((step for step, _ in checkpoints(run)), default=0)


def watch(argv: list[str], run: Path, log: Path) -> Pace:
    """One run without a kill, and how long its parts took."""
    saves, saving_since, first, last, step = [], None, None, None, 0
    begin = time.perf_counter()
    with started(argv, log) as process:
        while process.poll() is None:
            now = time.perf_counter()
            if is_saving(run) != (saving_since is not None):
                if saving_since is not None:
                    saves.append(now - saving_since)
                saving_since = now if saving_since is None else None
            if (found := logged_step(run)) > step:
                step, last = found, now
                first = first or now
            time.sleep(0.001)
        end = time.perf_counter()
    check_finished(process, run, log)
    return Pace(first - begin, (last - first) / step, statistics.median(saves), end - last)


def kill_once(
    process: subprocess.Popen, run: Path, when: str, step: float, since: int, pace: Pace, rng: random.Random
) -> bool:
    """Kills the run that began at `since` in step `step` (or as `when` says); False when it ended before that."""

    def wait_for(condition) -> bool:
        while process.poll() is None and not condition():
            time.sleep(0.001)
        return process.returncode is None

    if when == "start":
        time.sleep(rng.uniform(0, pace.start))
    else:
        resumed = checkpoint_step(run)
        reached = wait_for(lambda: logged_step(run, since) >= max(step, resumed + 1))
        if reached and when == "save":
            reached = wait_for(lambda: is_saving(run, since))
        if not reached:
            return False
        time.sleep(rng.uniform(0, {"save": 0.8 * pace.save, "step": pace.step, "end": pace.end}[when]))
    if process.poll() is not None:
        return False
    kill(process)
    return True


def survive(series: Series, kills: int, seed: int = 0, say=print) -> Outcome:
    """The run of `series` unbroken, and killed so many times; what that came to."""
    rng = random.Random(seed)
    folder, log = series.folder, series.folder / "log"
    whole, broken = folder / "whole", folder / "killed"
    pace = watch(series.command(whole), whole, log)
    say(f"the unbroken run: {series.steps} steps, {pace}")
    moments = sorted(rng.uniform(1, series.steps - SAVE_STEPS - 1) for _ in range(kills))
    kinds = ["save", "step", "save", "start" if kills > 4 else "step"]
    plan = [[kinds[number % len(kinds)], moment] for number, moment in enumerate(moments)]
    if kills > 4:
        plan[-1] = ["end", series.steps]
    outcome = Outcome(bit_equal=False, rows_equal=False)
    while plan:
        when, step = plan[0]
        since = time.time_ns()
        with started(series.command(broken, "--resume_from_checkpoint", "auto"), log) as process:
            if not kill_once(process, broken, when, step, since, pace, rng):
                check_finished(process, broken, log)
                plan[0][0] = "end"  # it got through: its end is what is left of it
                continue
        plan.pop(0)
        outcome.kills += 1
        outcome.moments[when] += 1
        in_save = is_saving(broken, since)
        outcome.kills_in_save += in_save
        lost = logged_step(broken) - checkpoint_step(broken)
        outcome.lost_steps_max = max(outcome.lost_steps_max, lost)
        where = " in the middle of a save" if in_save else ""
        say(f"kill {outcome.kills} ({when}){where}: {lost} steps after checkpoint {checkpoint_step(broken)}")
    with started(series.command(broken, "--resume_from_checkpoint", "auto"), log) as process:
        process.wait()
    check_finished(process, broken, log)
    outcome.bit_equal = weights(whole) == weights(broken)
    outcome.rows_equal = rows(whole) == rows(broken)
    return outcome


def weights(run: Path) -> dict[str, bytes]:
    """Every weight file of the finished run, checkpoints left out."""
    files = [path for path in run.rglob("*.safetensors") if "checkpoint-" not in str(path.relative_to(run))]
    return {
        f"{path.relative_to(run)}/{name}": tensor.numpy().tobytes()
        for path in files
        for name, tensor in load_file(path).items()
    }


def rows(run: Path) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in TIMING} for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", choices=sorted(STAGES), default="rlhf")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--family", choices=sorted(FAMILIES), default="llama")
    parser.add_argument("--peft", action="store_true", help="adapters; rlhf: all four models over one base")
    parser.add_argument("--processes", type=int, default=1, help="more than one: ZeRO-2 through the launcher")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    start = time.perf_counter()
    folder = Path(tempfile.mkdtemp(prefix="kill-"))
    make_inputs(folder, args.family)
    series = Series(args.stage, folder, args.steps, args.peft, args.processes)
    outcome = survive(series, args.kills, args.seed, say=lambda line: print(line, flush=True))
    print(
        f"{outcome.kills} kills: {outcome.kills_in_save} in the middle of a save; meant for {dict(outcome.moments)}; "
        f"the rows of metrics.jsonl are {'equal' if outcome.rows_equal else 'NOT equal'}; "
        f"{time.perf_counter() - start:.0f} s"
    )
    name = " ".join(
        ["kill", args.stage, args.family]
        + ["peft"] * args.peft
        + [f"{args.processes} processes, ZeRO-2"] * (args.processes > 1)
    )
    report = {
        "name": name,
        "kills": outcome.kills,
        "bit_equal": outcome.bit_equal,
        "lost_steps_max": outcome.lost_steps_max,
    }
    if outcome.bit_equal and outcome.rows_equal:
        shutil.rmtree(folder)
    else:
        print(f"the runs are kept in {folder}")
    print(json.dumps(report))
    sys.exit(not (outcome.bit_equal and outcome.rows_equal))


if __name__ == "__main__":
    main()

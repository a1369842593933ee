"""Runs that are killed at random moments, in the middle of saving, too, and end as one that was not.

python tests/bench/kill.py --stage rlhf --kills 10

A tiny run of the stage goes through once; then the same run is killed (SIGKILL) so many times, each time after a random
moment, and resumed with --resume_from_checkpoint auto. Its weights must be bit-equal to those of the unbroken run. The
last line is JSON: {"name", "kills", "bit_equal", "lost_steps_max"}; steps are lost that came after the last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from char_tokenizer import CHARACTERS, build_char_tokenizer
from safetensors.torch import load_file
from tiny_models import build_llama, build_scalar_model

from keju.records.writing import write_jsonl

TRAINER = {"max_length": 64, "token_budget": 64, "logging_steps": 1, "eval_strategy": "no", "eval_filename": ""}
PPO = {
    "rollout_batch_size": 4,
    "num_responses": 2,
    "num_mini_batches": 2,
    "max_new_tokens": 8,
    "token_budget": 128,
    "max_eval_samples": 3,
    "ema_decay": 0.9,
    "kl_target": 0.05,
    "allow_unfinished": "true",
}
STAGES = {"pretrain": TRAINER, "sft": TRAINER, "reward": TRAINER, "dpo": TRAINER, "rlhf": PPO}


def make_inputs(folder: Path) -> None:
    tokenizer = build_char_tokenizer()
    actor = build_llama(vocab_size=len(tokenizer))
    reward = build_scalar_model(build_llama(len(tokenizer), seed=1), seed=2)
    for name, model in (("model", actor), ("reward", reward)):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
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


def command(stage: str, inputs: Path, output: Path, steps: int) -> list[str]:
    module = stage if stage == "pretrain" else f"train_{stage}"
    flags = {
        "model_name_or_path": inputs / "model",
        "data_dir": inputs,
        "output_dir": output,
        "max_steps": steps,
        "save_strategy": "steps",
        "save_steps": 2,
        **STAGES[stage],
        **({"reward_model_path": inputs / "reward"} if stage == "rlhf" else {}),
    }
    return [
        sys.executable,
        "-m",
        f"keju.{module}",
        "--use_cpu",
        *(str(x) for k, v in flags.items() for x in (f"--{k}", v)),
    ]


def run(argv: list[str], log: Path, seconds: float | None = None) -> bool:
    """Whether it ended by itself; killed after `seconds` otherwise. Raises RuntimeError when it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("ab") as file:
        process = subprocess.Popen(argv, stdout=file, stderr=file, env=environment)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return False
    if code:
        raise RuntimeError(f"exit code {code}; see {log}:\n{log.read_text(errors='replace')[-2000:]}")
    return True


def weights(folder: Path) -> dict[str, bytes]:
    """Every weight file of the finished run, checkpoints left out."""
    files = [path for path in folder.rglob("*.safetensors") if "checkpoint-" not in str(path)]
    return {
        f"{path.relative_to(folder)}/{name}": tensor.numpy().tobytes()
        for path in files
        for name, tensor in load_file(path).items()
    }


def last_step(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    rows = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return max((json.loads(row)["step"] for row in rows if row.endswith("}")), default=0)


def checkpoint_step(folder: Path) -> int:
    return max((int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-[0-9]*")), default=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", choices=sorted(STAGES), default="rlhf")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    folder = Path(tempfile.mkdtemp(prefix="kill-"))
    make_inputs(folder)
    whole = command(args.stage, folder, folder / "whole", args.steps)
    start = time.perf_counter()
    run(whole, folder / "whole.log")
    seconds = time.perf_counter() - start
    print(f"the unbroken run: {args.steps} steps in {seconds:.1f} s with its start")

    output = folder / "killed"
    killed, lost = 0, 0
    resumed = [*command(args.stage, folder, output, args.steps), "--resume_from_checkpoint", "auto"]
    while killed < args.kills:
        # Up to where it would end; a start alone takes most of it.
        if run(resumed, folder / "killed.log", rng.uniform(0.5, 1.0) * seconds):
            shutil.rmtree(output)  # it got through: once more from the beginning
            continue
        killed += 1
        lost = max(lost, last_step(output) - checkpoint_step(output))
        print(f"killed {killed} times: at step {last_step(output)}, checkpoint {checkpoint_step(output)}", flush=True)
    run(resumed, folder / "killed.log")
    bit_equal = weights(folder / "whole") == weights(output)
    shutil.rmtree(folder)
    report = {"name": f"kill {args.stage}", "kills": killed, "bit_equal": bit_equal, "lost_steps_max": lost}
    print(json.dumps(report))
    sys.exit(not bit_equal)


if __name__ == "__main__":
    main()

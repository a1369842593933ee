"""The benchmark of PPO at toy size: both sides must compute the same, or it stops."""

import json
import os
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).resolve().parents[1] / "bench" / "ppo.py"
TOY = {
    "hidden_size": 64, "layers": 1, "vocab_size": 300, "rounds": 1, "token_budget": 256, "prompts": 4,
    "mini_batches": 2, "shortest_prompt": 5, "longest_prompt": 20, "max_new_tokens": 12, "mean_length": 6,
    "threads": 1,
}  # fmt: skip


def test_a_tree_step_is_a_plain_step():
    flags = [text for name, value in TOY.items() for text in (f"--{name}", str(value))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), *flags], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["name"] == "ppo" and report["ratio"] > 0 and report["ratio_whole_step"] > 0
    assert "gradients of the critic" in done.stdout

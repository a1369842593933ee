"""Two processes through the real deepspeed launcher, on the CPU with gloo: the loss curve of one process."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from char_tokenizer import CHARACTERS, build_char_tokenizer
from tiny_models import build_llama
from transformers import AutoModelForCausalLM

from keju.records.writing import write_jsonl

REPO = Path(__file__).resolve().parents[1]
STEPS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    tokenizer = build_char_tokenizer()
    build_llama(vocab_size=len(tokenizer)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rng = random.Random(0)
    rows = [
        {
            "prompt": "".join(rng.choices(CHARACTERS, k=6)),
            "answers": [{"answer": "".join(rng.choices(CHARACTERS, k=rng.randint(1, 30))), "score": 1}],
        }
        for _ in range(8)
    ]
    write_jsonl(folder / "ranked_train.jsonl", rows)
    return folder


def losses(out: Path) -> list[float]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def flags(folder: Path, out: Path, batch_size: int) -> list[str]:
    settings = {
        "model_name_or_path": folder / "model",
        "data_dir": folder,
        "eval_filename": "",
        "output_dir": out,
        "max_length": 64,
        "token_budget": 512,
        "per_device_train_batch_size": batch_size,
        "max_steps": STEPS,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "optim": "adamw_torch",
    }
    return ["--use_cpu", *(part for name, value in settings.items() for part in (f"--{name}", str(value)))]


@pytest.mark.slow
def test_two_processes_give_the_loss_curve_of_one(folder, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "MASTER_PORT": "29517"}
    one = [sys.executable, "-m", "keju.train_sft", *flags(folder, tmp_path / "one", 8)]
    subprocess.run(one, check=True, env=environment, timeout=300)
    # The shells' own launcher line: run_stage of examples/_environment.sh
    script = 'source "$0/examples/_environment.sh"; NUM_GPUS=2 run_stage train_sft "$@"'
    two = ["bash", "-c", script, str(REPO), *flags(folder, tmp_path / "two", 4)]
    subprocess.run(two, check=True, env=environment, timeout=600)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    a = AutoModelForCausalLM.from_pretrained(tmp_path / "one").state_dict()
    b = AutoModelForCausalLM.from_pretrained(tmp_path / "two").state_dict()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-5)

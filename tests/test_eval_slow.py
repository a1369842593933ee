"""Evaluations that take minutes: against lm-evaluation-harness, of a model that has learned something, and killed."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from benchmark_slices import write_slices
from char_tokenizer import CHARACTERS, build_char_tokenizer
from smollm2 import smollm2_folder
from tiny_models import build_llama

REPO = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


def test_the_harness_protocol_is_that_of_the_harness(shared, tmp_path):
    """Every log-likelihood, and the accuracies; the benchmark stops where they differ. The rows of CMMLU are MMLU's."""
    write_slices(shared / "data", tmp_path)
    size = ["--hidden_size", "64", "--layers", "2", "--shot_tokens", "0", "--rounds", "1", "--data_dir", str(tmp_path)]
    command = [sys.executable, str(REPO / "tests/bench/eval.py"), *size]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.strip().splitlines()
    assert [line.split(":")[0] for line in lines if "largest difference" in line] == ["ceval", "mmlu", "cmmlu"]
    result = json.loads(lines[-1])
    assert result.keys() == {"name", "ours", "peer", "ratio", "unit"} and result["name"] == "eval"


@pytest.fixture(scope="module")
def smollm2() -> Path:
    try:
        return smollm2_folder()
    except FileNotFoundError as error:
        pytest.skip(str(error))


@torch.no_grad()
def test_a_pretrained_model_is_examined_as_by_hand(shared, smollm2, tmp_path):
    """SmolLM2-135M-Instruct in MMLU, 5 shots: each row once more with plain transformers, and what is known of it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    subjects = ["high_school_geography", "marketing", "sociology"]
    command = [
        *(sys.executable, "-m", "keju.eval_pretrain", "--model_name_or_path", str(smollm2)),
        *("--data_dir", str(shared / "data/eval"), "--output_dir", str(tmp_path / "out")),
        *("--tasks", "mmlu", "--split", "val", "--num_shots", "5", "--subjects", *subjects),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    (result,) = json.loads((tmp_path / "out/results.json").read_text(encoding="utf-8"))["results"]
    rows = [
        json.loads(line)
        for line in (tmp_path / "out/predictions_mmlu_official_5shot.jsonl").read_text("utf-8").splitlines()
    ]
    assert result["num_items"] == len(rows) > 60 and result["items_with_shots_dropped"] == 0
    # With shots it answers with a letter, and it is no better than its size lets it be.
    assert result["choice_mass"] > 0.5
    assert 0.15 < result["accuracy"] < 0.5
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    letters = [tokenizer.encode(f" {letter}", add_special_tokens=False) for letter in "ABCD"]
    assert all(len(ids) == 1 for ids in letters)
    with (shared / "data/eval/mmlu/dev/marketing_dev.csv").open(encoding="utf-8", newline="") as file:
        shots = list(csv.reader(file))[:5]
    head = "The following are multiple choice questions (with answers) about  marketing.\n\n"
    for question, *choices, answer in shots:
        options = "".join(f"\n{letter}. {choice}" for letter, choice in zip("ABCD", choices, strict=True))
        head += f"{question}{options}\nAnswer: {answer}\n\n"
    for row in [row for row in rows if row["group"] == "marketing"][:8]:
        logits = model(torch.tensor([tokenizer.encode(head + row["prompt"])])).logits[0, -1]
        expected = [logits.log_softmax(-1)[ids[0]].item() for ids in letters]
        assert row["scores"]["acc"] == pytest.approx(expected, abs=1e-3)
        assert row["pred"] == max(range(4), key=lambda place: expected[place])


def test_a_killed_evaluation_ends_as_one_that_was_not(tmp_path):
    """SIGKILL, several times; the same command goes on each time, and asks nothing twice."""
    tokenizer = build_char_tokenizer()
    for part in (build_llama(vocab_size=len(tokenizer), hidden_size=512, num_hidden_layers=8), tokenizer):
        part.save_pretrained(tmp_path / "lm")
    letters = "".join(CHARACTERS)
    for name, count in (("test", 400), ("dev", 5)):
        rows = [
            {"idiom": letters[n % 70 : n % 70 + 4], "choices": [letters[k : k + 9] for k in range(n % 30, n % 30 + 4)],
             "answer": n % 4}
            for n in range(count)
        ]  # fmt: skip
        (tmp_path / f"idiom_mc_{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")

    def command(out: str) -> list[str]:
        return [
            *(sys.executable, "-m", "keju.eval_pretrain", "--model_name_or_path", str(tmp_path / "lm")),
            *("--data_dir", str(tmp_path), "--output_dir", str(tmp_path / out), "--token_budget", "250"),
        ]

    def scored(out: str) -> int:
        path = tmp_path / out / "scores.jsonl"
        return path.read_bytes().count(b"\n") if path.is_file() else 0

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command("whole"), check=True, capture_output=True, env=environment)
    kills = 0
    while kills < 3:
        process = subprocess.Popen(command("killed"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
        before = scored("killed")
        while process.poll() is None and scored("killed") < before + 60:
            time.sleep(0.005)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills >= 2
    done = subprocess.run(command("killed"), capture_output=True, text=True, env=environment)
    assert done.returncode in (0, 2), done.stderr
    whole, killed = (
        (tmp_path / out / "predictions_idiom_completion_0shot.jsonl").read_text(encoding="utf-8").splitlines()
        for out in ("whole", "killed")
    )
    assert len(whole) == len(killed) == 400
    for a, b in zip(map(json.loads, whole), map(json.loads, killed), strict=True):
        # Rows that a kill has packed otherwise are rounded otherwise; eight layers of large weights amplify that.
        assert a["pred"] == b["pred"] and a["scores"]["acc"] == pytest.approx(b["scores"]["acc"], rel=1e-4)
    assert json.loads((tmp_path / "killed/summary.json").read_text(encoding="utf-8"))["num_recalled"] > 0
    assert scored("killed") == scored("whole")

"""The benchmark runner of kernels/bench: its smoke run, what it refuses, and that a wrong provider is caught."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RUNNER = Path(__file__).resolve().parents[2] / "kernels" / "bench" / "run.py"

# Two providers that compute something else, one of them in its gradient only; one that fails; one that agrees.
WRONG = """
import torch
from harness.case import FORWARD, TRAINING, Case, Provider, Work, draw

class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.exp()

    @staticmethod
    def backward(ctx, dy):
        return 2 * dy

def fail(x):
    raise RuntimeError("no such kernel")

def cases(setting):
    providers = {
        "keju": Provider(lambda x: x.exp() + 0.01),
        "torch": Provider(torch.exp),
        "gradient": Provider(Doubled.apply),
        "failing": Provider(fail),
    }
    work = {FORWARD: Work(1.0), TRAINING: Work(1.0)}
    return [Case("of four", setting.dtype, work, lambda: ({"x": draw(setting, 8)}, providers))]
"""

OUT_OF_MEMORY = """
import torch
from harness.case import FORWARD, Absent, Case, Provider, Work, draw

def huge(x):
    raise torch.OutOfMemoryError("CUDA out of memory")

def cases(setting):
    providers = {
        "keju": Provider(torch.exp),
        "torch": Provider(torch.exp),
        "huge": Provider(huge),
        "elsewhere": Absent("needs a quantum computer"),
    }
    work = {FORWARD: Work(1.0)}
    return [Case("of three", setting.dtype, work, lambda: ({"x": draw(setting, 8)}, providers))]
"""


@pytest.fixture
def bench(monkeypatch, capsys):
    """bench(*arguments) -> (exit code, standard output, standard error) of the runner, in this process."""
    monkeypatch.syspath_prepend(RUNNER.parent)
    spec = importlib.util.spec_from_file_location("bench_run", RUNNER)
    runner = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(runner)

    def call(*arguments: str, interpreted: bool = False) -> tuple[int, str, str]:
        monkeypatch.setattr(runner, "is_interpreted", lambda: interpreted)
        monkeypatch.setattr(sys, "argv", ["run.py", "--tiny", *arguments])
        try:
            code = runner.main()
        except SystemExit as stop:  # argparse
            code = stop.code
        return code, *capsys.readouterr()

    return call


def rows_of(output: str) -> dict[str, str]:
    """provider -> its line in the last pass of the last case"""
    return {line.split()[0]: line for line in output.splitlines() if line.startswith("    ")}


def test_smoke_run(tmp_path):
    output = tmp_path / "made" / "results.json"
    arguments = ["--tiny", "--ops", "gelu,rms_norm", "--output", str(output)]
    environment = {
        k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "KEJU_KERNELS", "PYTHONSAFEPATH")
    }
    done = subprocess.run([sys.executable, str(RUNNER), *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for table in done.stdout.split("\n\n")[1:-1]:
        assert all(provider in table for provider in ("keju", "torch ", "torch.compile", "liger")), table
    assert "rms_norm 1/2: " in done.stderr  # progress
    found = json.loads(output.read_text(encoding="utf-8"))
    assert {"device", "date", "versions", "keju_runs", "dtype", "size", "limits", "threads"} <= set(found)
    assert found["versions"]["torch"] and found["limits"]["bandwidth"] > 0 and found["limits"]["flops"] > 0
    assert [case["op"] for case in found["cases"]] == ["gelu"] * 3 + ["rms_norm"] * 2
    for case in found["cases"]:
        assert {result["kind"] for result in case["results"]} == {"forward", "forward + backward"}
        ran = {result["provider"] for result in case["results"]}
        assert {"keju", "torch"} <= ran and ran | set(case["left_out"]) == {"keju", "torch", "torch.compile", "liger"}
        assert all(case["left_out"].values()), "a reason is given"
        for result in case["results"]:
            assert 0 < result["ms_low"] <= result["ms"] <= result["ms_high"] and result["rounds"] == 2
            assert result["of_limit"] > 0 and result["ratio"] > 0 and result["error"] < 3e-2


def test_every_op_has_sound_cases(bench, tmp_path):
    code, out, err = bench("--rounds", "1", "--output", str(tmp_path / "results.json"))
    assert code == 0, out + err
    ops = {path.stem for path in RUNNER.parent.glob("*.py")} - {"run"}
    assert {case["op"] for case in json.loads((tmp_path / "results.json").read_text())["cases"]} == ops


@pytest.mark.parametrize(
    ("arguments", "interpreted", "message"),
    [
        (["--ops", "rms_nrom"], False, "error: --ops rms_nrom: choose from column_mask_attention, gae, gelu, glu, "),
        (["--ops", "gelu"], True, "error: TRITON_INTERPRET=1: "),
        (["--rounds", "0"], False, "run.py: error: --rounds 0 must be positive"),
    ],
)
def test_wrong_usage(bench, tmp_path, arguments, interpreted, message):
    code, out, err = bench(*arguments, "--output", str(tmp_path / "results.json"), interpreted=interpreted)
    assert code == 2 and err.splitlines()[-1].startswith(message), err
    assert not out and not (tmp_path / "results.json").exists()


def test_who_computes_something_else_is_reported_and_not_timed(bench, tmp_path):
    (tmp_path / "wrong.py").write_text(WRONG)
    code, out, err = bench("--folder", str(tmp_path), "--output", str(tmp_path / "results.json"))
    assert code == 1, err
    rows = rows_of(out)
    assert "disagrees with torch: error" in rows["keju"] and "disagrees with torch: error" in rows["gradient"]
    assert "failed: RuntimeError: no such kernel" in rows["failing"]
    (case,) = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["cases"]
    assert {result["provider"] for result in case["results"] if result["ms"]} == {"torch"}


def test_running_out_of_memory_is_a_result(bench, tmp_path):
    (tmp_path / "memory.py").write_text(OUT_OF_MEMORY)
    code, out, err = bench("--folder", str(tmp_path), "--output", str(tmp_path / "results.json"))
    assert code == 0, out + err
    assert "out of memory" in rows_of(out)["huge"]
    assert "left out: elsewhere (needs a quantum computer)" in out

"""The whole pipeline at its smallest size, from the command line, twice."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["llama-tiny", "glm-tiny", "chatglm-tiny", "chatglm2-tiny"])
def test_quickstart_fast(tmp_path, model):
    """Every stage, PPO included; for one of the models also a second run over what is there."""
    out = tmp_path / "quickstart"
    command = ["bash", "examples/quickstart.sh", "--fast", "--model", model, "--output_dir", str(out)]
    first = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=900, check=False)
    assert first.returncode == 0, first.stderr[-3000:]
    assert str(out / "report.html") in first.stdout.splitlines()[-1]
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    for stage in ("pretrain", "sft", "reward", "dpo", "ppo"):
        figures = summary[stage]
        for name in ("seconds", "tokens_per_second", "first_loss", "last_loss"):
            assert math.isfinite(figures[name]), (stage, name)
    for name in ("reward", "dpo"):
        assert 0 <= summary[name]["heldout_accuracy"] <= 1
    assert all(math.isfinite(summary["ppo"][name]) for name in ("reward_before", "reward_after", "kl"))
    assert summary["eval"]["chance"] == 0.25
    for name in ("untrained", "pretrain", "sft", "dpo", "ppo"):
        assert 0 <= summary["eval"][name]["accuracy"] <= 1
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "http://" not in page.replace("http://www.w3.org", "") and "<script" not in page
    assert page.count("<svg") >= 5

    if model != "llama-tiny":
        return
    # A second run finds everything there.
    before = {path: path.stat().st_mtime for path in out.glob("*/summary.json")}
    second = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=900, check=False)
    assert second.returncode == 0, second.stderr[-3000:]
    assert {path: path.stat().st_mtime for path in out.glob("*/summary.json")} == before
    assert second.stdout.count("done before") == len(before), second.stdout

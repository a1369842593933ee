"""results.md from made-up figures of two seeds."""

import json

from keju.report.results import COLUMNS, spread, write_results


def test_spread_is_mean_and_sample_deviation():
    rows = [{"win_rate": 0.5}, {"win_rate": 0.6}]
    assert spread(rows, "win_rate", COLUMNS["win_rate"]) == "55.0% ± 7.1"
    assert spread(rows[:1], "win_rate", COLUMNS["win_rate"]) == "50.0%"


def test_the_page_has_a_row_a_policy_and_a_picture(tmp_path):
    def figures(seed: int) -> dict[str, float]:
        return {name: 0.1 * seed for name in COLUMNS}

    summary = {
        "seeds": [1, 2],
        "seconds": 90.0,
        "results": {"llama-tiny": {name: [figures(1), figures(2)] for name in ("sft", "ppo", "dpo")}},
    }
    runs = []
    for seed in (1, 2):
        run = tmp_path / f"seed-{seed}"
        run.mkdir()
        rows = [{"step": step, "reward": step * seed, "kl": 0.1, "judge": 1.0} for step in range(1, 5)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        runs.append(run)
    page = write_results(summary, {"llama-tiny": runs}, tmp_path)
    lines = page.read_text(encoding="utf-8").splitlines()
    (head,) = [number for number, line in enumerate(lines) if line.startswith("| policy |")]
    assert lines[head + 1].startswith("|---|") and lines[head].count("|") == lines[head + 1].count("|")
    assert [line.split("|")[1].strip() for line in lines[head + 2 : head + 5]] == ["sft", "ppo", "dpo"]
    assert all(line.count("|") == lines[head].count("|") for line in lines[head + 2 : head + 5])
    assert "![" in page.read_text() and (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")

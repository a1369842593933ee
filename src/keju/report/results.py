"""results.md: what PPO and DPO did to SFT models, over families and seeds, with the curves of the PPO runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from keju.records.journal import Journal
from keju.records.writing import write_text
from keju.report.page import markdown_environment, page_context
from keju.training.plots import plot_over_seeds

# Column of the figures -> (head of the table, how a number is written).
COLUMNS = {
    "win_rate": ("win rate against SFT", "{:.1%}"),
    "judge": ("judge", "{:.2f}"),
    "reward": ("reward", "{:.2f}"),
    "kl": ("KL to SFT", "{:.2f}"),
    "length": ("tokens", "{:.1f}"),
    "finished": ("ended", "{:.1%}"),
    "distinct_2": ("distinct-2", "{:.3f}"),
    "accuracy": ("benchmark", "{:.1%}"),
    "seconds": ("seconds", "{:.0f}"),
}
CURVES = {
    "reward (of the model that trains)": "reward",
    "reward by the held-out judge": "judge",
    "KL to the SFT model (nats a response)": "kl",
    "response length (tokens)": "response_length",
}
PICTURE = "results.png"


def write_results(summary: Mapping[str, Any], ppo_runs: Mapping[str, Sequence[Path]], folder: Path) -> Path:
    """summary: "seeds", "seconds" and results[model][policy], the figures of each seed. Returns the page's path."""
    curves = {model: [list(Journal(run / "metrics.jsonl").read()) for run in runs] for model, runs in ppo_runs.items()}
    plot_over_seeds(curves, folder / PICTURE, CURVES)
    tables = [
        (model, [(name, [spread(rows, *item) for item in COLUMNS.items()]) for name, rows in policies.items()])
        for model, policies in summary["results"].items()
    ]
    text = (
        markdown_environment()
        .get_template("results.md.j2")
        .render(
            heads=[head for head, _ in COLUMNS.values()],
            tables=tables,
            seeds=summary["seeds"],
            minutes=round(summary["seconds"] / 60),
            picture=PICTURE,
            **page_context(),
        )
    )
    path = folder / "results.md"
    write_text(path, text)
    return path


def spread(rows: Sequence[Mapping[str, float]], column: str, form: tuple[str, str]) -> str:
    """Mean and sample deviation over seeds."""
    values = [row[column] for row in rows]
    written = form[1].format(fmean(values))
    return written if len(values) < 2 else f"{written} ± {form[1].format(stdev(values)).removesuffix('%')}"

"""What the report shows of each stage, gathered from its run folder; a stage that did not run is shown as such."""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from keju.eval.statistics import wilson_interval
from keju.records.journal import Journal
from keju.report.charts import Line, chart_rows, line_chart
from keju.stages.spec import stages
from keju.training.plots import metric_series, smooth

# In the order of the pipeline: folder of the run and key in summary.json -> stage.
STAGES = {stage.folder: stage for stage in stages().values() if stage.folder}
# The settings that a reader asks about first; args.json in the run folder has all.
SETTINGS = (
    *("model_name_or_path", "tokenizer_name", "reward_model_path", "train_filename", "eval_filename"),
    *("learning_rate", "actor_learning_rate", "critic_learning_rate", "num_train_epochs", "max_steps"),
    *("num_train_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "token_budget", "max_length"),
    *("loss_type", "beta", "kl_coef", "rollout_batch_size", "num_responses", "max_new_tokens"),
    *("use_peft", "dtype", "seed"),
)
PPO_CHARTS = {
    "Reward": {"reward": "mean score of the sampled responses"},
    "KL to the starting model": {"kl": "nats a response"},
    "Response length": {"response_length": "tokens"},
}
MAX_SAMPLES = 5


@dataclass
class Stage:
    """figures: its part of the summary. charts: SVG. pictures: (caption, data URI) of the folder's PNGs."""

    key: str
    title: str
    purpose: str
    ran: bool = False
    figures: Mapping[str, Any] = field(default_factory=dict)
    charts: list[Markup] = field(default_factory=list)
    pictures: list[tuple[str, str]] = field(default_factory=list)
    samples: list[tuple[str, list[dict]]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    folder: str = ""
    results: list[tuple[str, str, str]] = field(default_factory=list)


def gather(key: str, figures: Mapping[str, Any] | None, folder: Path | None) -> Stage:
    """The stage `key` from its figures in the summary and from its run folder; either may be missing."""
    title, purpose = (STAGES[key].title, STAGES[key].purpose) if key in STAGES else (key, "")
    stage = Stage(key, title, purpose, ran=bool(figures), figures=figures or {})
    stage.results = _results(stage.figures)
    if folder is None or not folder.is_dir():
        return stage
    stage.folder = str(folder)
    rows = list(Journal(folder / "metrics.jsonl").read())
    stage.charts = [chart for chart in _charts(key, rows) if chart]
    drawn = {"loss.png"} if stage.charts else set()
    pictures = [path for path in sorted(folder.glob("*.png")) if path.name not in drawn]
    stage.pictures = [(path.stem.replace("_", " "), _data_uri(path)) for path in pictures]
    if (folder / "args.json").is_file():
        args = json.loads((folder / "args.json").read_text(encoding="utf-8"))
        arguments = args.get("arguments", {})
        stage.settings = {name: arguments[name] for name in SETTINGS if arguments.get(name) not in (None, "", False)}
        stage.command = shlex.join(args.get("command", []))
    stage.samples = _samples(list(Journal(folder / "samples.jsonl").read()))
    return stage


def verdict(interval: tuple[float, float] | None, chance: float) -> str:
    """What a share with this interval says about guessing."""
    if interval is None:
        return ""
    if interval[0] > chance:
        return "above chance"
    return "below chance" if interval[1] < chance else "not told apart from chance"


def _results(figures: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, value, remark) of what a stage is about, beyond its loss."""
    results = []
    if figures.get("heldout_accuracy") is not None:
        accuracy, count = figures["heldout_accuracy"], figures.get("heldout_pairs")
        interval = figures.get("heldout_interval") or (wilson_interval(accuracy * count, count) if count else None)
        remark = "chance 50%"
        if interval is not None:
            remark = f"95% interval {interval[0]:.1%} to {interval[1]:.1%}; chance 50%: {verdict(tuple(interval), 0.5)}"
        results.append(("held-out pairs ranked right", f"{accuracy:.1%}", remark))
    if figures.get("reward_before") is not None and figures.get("reward_after") is not None:
        before, after = figures["reward_before"], figures["reward_after"]
        change = "no change" if after == before else f"{after - before:+.3f}"
        results.append(("reward on held-out prompts", f"{before:.3f} → {after:.3f}", change))
    if figures.get("kl") is not None:
        results.append(("KL to the starting model", f"{figures['kl']:.3f}", "nats a response"))
    return results


def _charts(key: str, rows: list[dict]) -> list[Markup]:
    steps, losses = metric_series(rows, "loss")
    if key == "ppo":
        charts = [chart_rows(rows, names, title=title) for title, names in PPO_CHARTS.items()]
        if any(charts):
            return charts
    training = Line("training", steps, losses)
    if len(losses) > 12:
        training = Line("training (smoothed)", steps, smooth(losses), raw=losses)
    return [line_chart([training, Line("held out", *metric_series(rows, "eval_loss"))], title="Loss")]


def _samples(rows: list[dict]) -> list[tuple[str, list[dict]]]:
    """The first samples of the first and of the last step, different prompts where there are enough."""
    if not rows:
        return []
    groups = []
    for step in dict.fromkeys((rows[0].get("step", 0), rows[-1].get("step", 0))):
        of_step = [row for row in rows if row.get("step", 0) == step]
        groups.append((f"Step {step}", _different_prompts(of_step)[:MAX_SAMPLES]))
    return groups


def _different_prompts(rows: list[dict]) -> list[dict]:
    seen: set[str] = set()
    first = [row for row in rows if not (row.get("prompt") in seen or seen.add(row.get("prompt")))]
    return first if len(first) >= MAX_SAMPLES else rows


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")

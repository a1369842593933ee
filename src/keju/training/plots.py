"""The pictures that a run leaves in its folder. Labels are English: no font for Chinese is assumed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keju.records.journal import Journal
from keju.records.writing import whole_file

if TYPE_CHECKING:  # a third of a second, and it looks for a home as it is imported
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Distinguishable for colour-blind readers too (Okabe and Ito).
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
INK, GRID = "#333333", "#E6E6E6"


def plot_loss(metrics: str | Path, png: str | Path, *, title: str = "Loss") -> None:
    """Training loss (raw, and smoothed over it), held-out loss where there is one, and the learning rate below."""
    rows = list(Journal(metrics).read())
    figure = _figure(7.0, 4.6, rows=2)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    steps, losses = metric_series(rows, "loss")
    if len(losses) > 12:
        upper.plot(steps, losses, color=COLORS[0], alpha=0.3, linewidth=1)
        upper.plot(steps, smooth(losses), color=COLORS[0], linewidth=2, label="training (smoothed)")
    else:
        upper.plot(steps, losses, color=COLORS[0], linewidth=2, marker="o", markersize=4, label="training")
    held_out = metric_series(rows, "eval_loss")
    if held_out[0]:
        upper.plot(*held_out, color=COLORS[1], linewidth=1.5, marker="o", markersize=5, label="held out")
    _style(upper, title=title, ylabel="loss")
    upper.legend(frameon=False, labelcolor=INK)
    lower.plot(*metric_series(rows, "learning_rate"), color=COLORS[2], linewidth=1.5)
    lower.set_ylim(bottom=0)
    _style(lower, xlabel="step", ylabel="learning rate")
    lower.ticklabel_format(axis="y", style="sci", scilimits=(-3, 3))
    _save(figure, png)


def plot_panels(
    metrics: str | Path,
    png: str | Path,
    panels: Mapping[str, Sequence[str]],
    *,
    marks: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """One small picture a title, of the columns under it (those that the metrics.jsonl has), two abreast.

    marks: steps to draw as dashed lines through all of them, by what they are.
    """
    rows = list(Journal(metrics).read())
    count = math.ceil(len(panels) / 2)
    figure = _figure(10.0, 2.3 * count, rows=count, columns=2)
    grid = figure.subplots(count, 2, squeeze=False).flat
    for axes, (title, names) in zip(grid, panels.items(), strict=False):
        found = {name: series for name in names if (series := metric_series(rows, name))[0]}
        for index, (name, (steps, values)) in enumerate(found.items()):
            marker = "o" if len(steps) <= 30 else None
            axes.plot(steps, values, color=_color(index), linewidth=1.5, marker=marker, markersize=3, label=name)
        for name, steps in (marks or {}).items():
            for number, step in enumerate(steps):
                axes.axvline(step, color=INK, linestyle="--", linewidth=1, label=None if number else name)
        _style(axes, title=title, size=10)
        if len(found) > 1 or (marks and any(marks.values())):
            # A pale ground, for a curve may pass behind.
            axes.legend(labelcolor=INK, fontsize=8, framealpha=0.85, edgecolor="none")
    _save(figure, png)


def plot_over_seeds(
    runs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], png: str | Path, panels: Mapping[str, str]
) -> None:
    """One small picture a title, of the column under it: for each name the mean of its runs' rows, and one deviation
    around it, as far as all of them go."""
    count = math.ceil(len(panels) / 2)
    figure = _figure(10.0, 2.6 * count, rows=count, columns=2)
    grid = figure.subplots(count, 2, squeeze=False).flat
    for axes, (title, column) in zip(grid, panels.items(), strict=False):
        for index, (name, rows) in enumerate(runs.items()):
            series = [metric_series(each, column) for each in rows]
            length = min((len(steps) for steps, _ in series), default=0)
            if not length:
                continue
            values = np.array([values[:length] for _, values in series], dtype=float)
            steps, mean, deviation = series[0][0][:length], values.mean(axis=0), values.std(axis=0)
            axes.plot(steps, mean, color=_color(index), linewidth=1.5, label=name)
            axes.fill_between(steps, mean - deviation, mean + deviation, color=_color(index), alpha=0.2, linewidth=0)
        _style(axes, title=title, size=10)
        if axes.lines:
            axes.legend(frameon=False, labelcolor=INK, fontsize=8)
    _save(figure, png)


def plot_histograms(
    groups: Mapping[str, Sequence[float]], png: str | Path, *, title: str, xlabel: str, bins: int = 40
) -> None:
    """Distributions over each other, each scaled to its own share of values, with its mean as a dashed line."""
    values = {name: _finite(group) for name, group in groups.items()}
    values = {name: group for name, group in values.items() if group.size}
    figure = _figure(7.0, 3.8, rows=1)
    axes = figure.subplots()
    if values:
        everything = np.concatenate(list(values.values()))
        low, high = float(everything.min()), float(everything.max())
        edges = np.linspace(low, high if high > low else low + 1, bins + 1)
        for index, (name, group) in enumerate(values.items()):
            label = f"{name} (n={group.size}, mean {group.mean():.3g})"
            shares = np.full(group.size, 100 / group.size)
            color = _color(index)
            axes.hist(group, edges, weights=shares, color=color, alpha=0.35, histtype="stepfilled")
            axes.hist(group, edges, weights=shares, color=color, linewidth=1.5, histtype="step", label=label)
            axes.axvline(group.mean(), color=color, linestyle="--", linewidth=1.5)
        axes.legend(frameon=False, labelcolor=INK, fontsize=9)
    _style(axes, title=title, xlabel=xlabel, ylabel="% of values")
    _save(figure, png)


def plot_bars(
    values: Mapping[str, float],
    png: str | Path,
    *,
    title: str,
    ylabel: str = "accuracy",
    errors: Mapping[str, float | tuple[float, float]] | None = None,
    chance: float | None = None,
) -> None:
    """One bar a name. errors: half-widths, or (below, above). chance: a dashed line that a guess would reach."""
    width = 1.2 if len(values) <= 8 else 0.7  # of a bar with the room beside it
    figure = _figure(max(4.0, width * len(values) + 1.5), 3.8)
    axes = figure.subplots()
    names = list(values)
    bars = axes.bar(names, [values[name] for name in names], width=0.6, color=COLORS[0])
    tops = [values[name] for name in names]
    if errors:
        pairs = [errors.get(name, 0.0) for name in names]
        pairs = [pair if isinstance(pair, tuple) else (pair, pair) for pair in pairs]
        axes.errorbar(range(len(names)), tops, yerr=np.array(pairs, dtype=float).T, fmt="none", ecolor=INK, capsize=4)
        tops = [top + pair[1] for top, pair in zip(tops, pairs, strict=True)]
    for bar, name, top in zip(bars, names, tops, strict=True):
        axes.annotate(
            f"{values[name]:.3f}", (bar.get_x() + bar.get_width() / 2, max(top, 0)), (0, 4),
            textcoords="offset points", ha="center", color=INK, fontsize=9,
        )  # fmt: skip
    if chance is not None:
        axes.axhline(chance, color=COLORS[1], linestyle="--", linewidth=1.5, label=f"chance {chance:.3g}")
        axes.legend(frameon=False, labelcolor=INK, loc="upper left")
        axes.set_ylim(top=max([*tops, chance]) * 1.3)
    _style(axes, title=title, ylabel=ylabel)
    if len(values) > 1 and max(map(len, names)) > 14:
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right", rotation_mode="anchor")
    _save(figure, png)


def plot_stacks(
    stacks: Mapping[str, Mapping[str, float]], png: str | Path, *, title: str, xlabel: str, limits: Mapping[str, float]
) -> None:
    """One horizontal bar a name, made of its parts, and a vertical line at each of the limits."""
    figure = _figure(10.0, 0.38 * len(stacks) + 1.9)
    axes = figure.subplots()
    parts = [part for part in dict.fromkeys(p for stack in stacks.values() for p in stack) if _is_seen(part, stacks)]
    names, left = list(stacks), np.zeros(len(stacks))
    for index, part in enumerate(parts):
        widths = np.array([stacks[name].get(part, 0.0) for name in names])
        axes.barh(names, widths, left=left, height=0.65, color=_color(index), label=part)
        left += widths
    for (name, limit), style in zip(limits.items(), ("-", "--"), strict=False):
        axes.axvline(limit, color=INK, linestyle=style, linewidth=1.5, label=name)
    axes.invert_yaxis()
    _style(axes, title=title, xlabel=xlabel)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    figure.legend(loc="outside lower center", ncols=5, frameon=False, labelcolor=INK, fontsize=8)
    _save(figure, png)


def _is_seen(part: str, stacks: Mapping[str, Mapping[str, float]]) -> bool:
    return any(stack.get(part) for stack in stacks.values())


def metric_series(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """(steps, values) of the rows that have a number under `name`."""
    found = [(row["step"], row[name]) for row in rows if row.get(name) is not None and "step" in row]
    return [step for step, _ in found], [value for _, value in found]


def smooth(values: Sequence[float], window: int | None = None) -> list[float]:
    """Moving average over `window` values (default: a fifteenth of them), centred, cut off at the ends.

    At the start it narrows on both sides, where a loss falls fastest and a one-sided average would lie far beside it.
    """
    half = max(1, (window or len(values) // 15) // 2)
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=float))])
    averages = []
    for index in range(len(values)):
        reach = min(half, index)
        low, high = index - reach, min(index + reach + 1, len(values))
        averages.append(float((sums[high] - sums[low]) / (high - low)))
    return averages


def _finite(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=float).reshape(-1)
    return array[np.isfinite(array)]


def _color(index: int) -> str:
    return COLORS[index % len(COLORS)]


def _figure(width: float, height: float, *, rows: int | None = None, columns: int = 1) -> Figure:
    """A figure of its own: pyplot would keep global state and choose a backend by the display.

    Args:
        width, height: in inches.
        rows, columns: of axes with short labels, whose margins are known. Without `rows` matplotlib finds the margins,
            for which it draws everything twice.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout=None if rows else "constrained", facecolor="white")
    if rows:
        left, right, bottom, top, across, down = 0.8, 0.2, 0.5, 0.35, 0.75, 0.6  # inches
        figure.subplots_adjust(
            left=left / width,
            right=1 - right / width,
            bottom=bottom / height,
            top=1 - top / height,
            wspace=across * columns / (width - left - right - across * (columns - 1)),
            hspace=down * rows / (height - bottom - top - down * (rows - 1)),
        )
    FigureCanvasAgg(figure)
    return figure


def _style(axes: Axes, *, title: str = "", xlabel: str = "", ylabel: str = "", size: int = 12) -> None:
    axes.set_title(title, loc="left", color=INK, fontsize=size, fontweight="bold")
    axes.set_xlabel(xlabel, color=INK)
    axes.set_ylabel(ylabel, color=INK)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#BBBBBB")
    axes.tick_params(colors=INK, labelsize=9)


def _save(figure: Figure, png: str | Path) -> None:
    with whole_file(png) as aside:
        figure.savefig(aside, format="png")

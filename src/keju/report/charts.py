"""Charts as inline SVG: they take the colours of the page, light or dark, and need no script."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 640, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 24, 14, 34
NUM_COLORS = 4  # classes c0 ... of the page's style sheet


@dataclass(frozen=True)
class Line:
    """One curve. raw: the unsmoothed values, drawn faintly behind. Points that are None or not finite are left out."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    raw: Sequence[float | None] = ()


@dataclass(frozen=True)
class Bar:
    """One value with its confidence interval, where known."""

    name: str
    value: float
    interval: tuple[float, float] | None = None


def line_chart(lines: Sequence[Line], *, title: str, xlabel: str = "step") -> Markup:
    """Curves over one x axis; empty where there is no point to draw."""
    drawn = [(line, _points(line.x, line.y)) for line in lines]
    drawn = [(line, points) for line, points in drawn if points]
    if not drawn:
        return Markup("")
    raw = [_points(line.x, line.raw) for line, _ in drawn]
    everything = [point for points in [*raw, *(points for _, points in drawn)] for point in points]
    x_ticks = ticks(min(x for x, _ in everything), max(x for x, _ in everything))
    y_ticks = ticks(min(y for _, y in everything), max(y for _, y in everything))
    x_range = (min(x for x, _ in everything), max(x for x, _ in everything))
    y_range = (min(y_ticks[0], *(y for _, y in everything)), max(y_ticks[-1], *(y for _, y in everything)))

    def place(x: float, y: float) -> tuple[float, float]:
        return _scale(x, x_range, (LEFT, WIDTH - RIGHT)), _scale(y, y_range, (HEIGHT - BOTTOM, TOP))

    parts = []
    for tick in y_ticks:
        _, height = place(x_range[0], tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
        parts.append(_text(LEFT - 8, height + 4, number(tick), "end"))
    inside = [tick for tick in x_ticks if x_range[0] <= tick <= x_range[1]]
    parts += [_text(place(tick, y_range[0])[0], HEIGHT - BOTTOM + 17, number(tick), "middle") for tick in inside]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 3, xlabel, "middle"))
    for index, ((_, points), behind) in enumerate(zip(drawn, raw, strict=True)):
        color = f"c{index % NUM_COLORS}"
        parts += [_path(behind, place, f"line faint {color}")] if behind else []
        parts.append(_path(points, place, f"line {color}"))
        if len(points) <= 20:
            places = [place(x, y) for x, y in points]
            parts += [f'<circle class="dot {color}" cx="{left:.1f}" cy="{top:.1f}" r="3"/>' for left, top in places]
    svg = _svg("".join(parts), HEIGHT, title)
    legend = "".join(
        f'<span class="key"><i class="c{index % NUM_COLORS}"></i>{escape(line.name)}</span>'
        for index, (line, _) in enumerate(drawn)
    )
    return Markup(f'<figure><figcaption>{escape(title)}<span class="legend">{legend}</span></figcaption>{svg}</figure>')


def bar_chart(bars: Sequence[Bar], *, title: str, chance: float | None = None) -> Markup:
    """Horizontal bars from 0 to 1 with whiskers for the intervals, and a line where a guess would stand."""
    if not bars:
        return Markup("")
    row, left = 34, 175
    height = TOP + row * len(bars) + BOTTOM

    def at(value: float) -> float:
        return _scale(value, (0.0, 1.0), (left, WIDTH - 70))

    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts.append(f'<line class="grid" x1="{at(tick):.1f}" x2="{at(tick):.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>')
        parts.append(_text(at(tick), height - BOTTOM + 17, f"{tick:.0%}", "middle"))
    for index, bar in enumerate(bars):
        middle = TOP + row * index + row / 2
        width = max(0.0, at(bar.value) - left)
        parts.append(f'<rect class="bar" x="{left}" y="{middle - 9}" width="{width:.1f}" height="18" rx="3"/>')
        end = at(bar.value)
        if bar.interval is not None:
            low, high = (at(value) for value in bar.interval)
            end = max(end, high)
            parts.append(f'<path class="whisker" d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 5}v10'
                         f'M{high:.1f} {middle - 5}v10"/>')  # fmt: skip
        parts.append(_text(left - 10, middle + 4, bar.name, "end", "name"))
        parts.append(_text(end + 8, middle + 4, f"{bar.value:.1%}", "start", "name"))
    if chance is not None:
        parts.append(f'<line class="chance" x1="{at(chance):.1f}" x2="{at(chance):.1f}" y1="{TOP - 6}" '
                     f'y2="{height - BOTTOM}"/>')  # fmt: skip
        title = f"{title} (dashed: chance, {chance:.0%})"
    return Markup(f"<figure><figcaption>{escape(title)}</figcaption>{_svg(''.join(parts), height, title)}</figure>")


def column_chart(columns: Mapping[int, int], *, title: str, xlabel: str) -> Markup:
    """A histogram: counts by class, each column as wide as every other, under it where its class begins."""
    if not columns:
        return Markup("")
    highest = ticks(0, max(columns.values()))
    width = (WIDTH - LEFT - RIGHT) / len(columns)

    def at(value: float) -> float:
        return _scale(value, (0, highest[-1]), (HEIGHT - BOTTOM, TOP))

    parts = []
    for tick in highest:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at(tick):.1f}" y2="{at(tick):.1f}"/>')
        parts.append(_text(LEFT - 8, at(tick) + 4, number(tick), "end"))
    every = -(-len(columns) // 14)  # more labels would not fit
    for index, (begin, count) in enumerate(sorted(columns.items())):
        left = LEFT + index * width
        parts.append(f'<rect class="bar" x="{left + 1:.1f}" y="{at(count):.1f}" width="{max(1, width - 2):.1f}" '
                     f'height="{HEIGHT - BOTTOM - at(count):.1f}"/>')  # fmt: skip
        if index % every == 0:
            parts.append(_text(left + width / 2, HEIGHT - BOTTOM + 17, number(begin), "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 3, xlabel, "middle"))
    svg = _svg("".join(parts), HEIGHT, title)
    return Markup(f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>")


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from below `low` to above `high`."""
    if high <= low:
        low, high = low - 0.5, high + 0.5
    step = 10 ** math.floor(math.log10((high - low) / count))
    step = next(step * factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= count)
    first = math.floor(low / step)
    return [round((first + index) * step, 12) for index in range(math.ceil(high / step) - first + 1)]


def number(value: float | None) -> str:
    """A number for people: 12,345, 2.31, 1.0e-05; a dash where there is none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if value == 0 or float(value).is_integer() and abs(value) < 1e9:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.1e}"


def chart_rows(rows: Sequence[Mapping], names: Mapping[str, str], *, title: str) -> Markup:
    """Curves of columns of metrics rows, by their labels; columns without a number are left out."""
    lines = []
    for name, label in names.items():
        found = [(row["step"], row[name]) for row in rows if row.get(name) is not None and "step" in row]
        lines.append(Line(label, [x for x, _ in found], [y for _, y in found]))
    return line_chart(lines, title=title)


def _points(x: Sequence[float], y: Sequence[float | None]) -> list[tuple[float, float]]:
    return [(a, b) for a, b in zip(x, y, strict=False) if b is not None and math.isfinite(b)]


def _scale(value: float, source: tuple[float, float], target: tuple[float, float]) -> float:
    share = (value - source[0]) / (source[1] - source[0]) if source[1] > source[0] else 0.5
    return target[0] + share * (target[1] - target[0])


def _path(points, place, classes: str) -> str:
    places = " ".join(f"{left:.1f},{top:.1f}" for left, top in (place(x, y) for x, y in points))
    return f'<polyline class="{classes}" points="{places}"/>'


def _text(x: float, y: float, text: str, anchor: str, classes: str = "tick") -> str:
    return f'<text class="{classes}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(content: str, height: float, title: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">{content}</svg>'

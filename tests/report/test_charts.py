from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from keju.report.charts import Bar, Line, bar_chart, chart_rows, line_chart, number, ticks


def svg(markup):
    return ElementTree.fromstring(re.search(r"<svg.*</svg>", str(markup))[0])


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 17), (1e-6, 3e-6), (5, 5), (0, 1e7), (-1e-9, 1e-9)])
def test_ticks_are_few_round_and_reach_around(low, high):
    found = ticks(low, high)
    assert 2 <= len(found) <= 8 and found == sorted(set(found))
    assert found[0] <= low and found[-1] >= high


def test_lines_stay_inside_and_keep_their_direction():
    chart = svg(
        line_chart([Line("a", [1, 2, 3], [5.0, None, -1.0]), Line("b", [1, 3], [0.0, float("nan")])], title="t")
    )
    lines = [line for line in chart.iter("polyline")]
    points = [tuple(map(float, point.split(","))) for point in lines[0].get("points").split()]
    assert len(points) == 2 and points[0][0] < points[1][0] and points[0][1] < points[1][1]  # SVG's y grows downwards
    width, height = map(float, chart.get("viewBox").split()[2:])
    assert all(0 <= x <= width and 0 <= y <= height for x, y in points)


def test_nothing_to_draw_is_nothing():
    assert line_chart([Line("a", [], []), Line("b", [1], [None])], title="t") == ""
    assert chart_rows([{"step": 1}], {"loss": "loss"}, title="t") == ""
    assert bar_chart([], title="t") == ""


def test_one_point():
    assert len(list(svg(line_chart([Line("a", [7], [2.0])], title="t")).iter("circle"))) == 1


def test_bars_have_the_length_of_their_value():
    chart = svg(bar_chart([Bar("a", 0.25), Bar("b", 0.5, (0.4, 0.6))], title="t", chance=0.25))
    widths = [float(bar.get("width")) for bar in chart.iter("rect")]
    assert widths[1] == pytest.approx(2 * widths[0], rel=1e-3)
    left = float(next(chart.iter("rect")).get("x"))
    chance = next(line for line in chart.iter("line") if line.get("class") == "chance")
    assert float(chance.get("x1")) == pytest.approx(left + widths[0], abs=0.1)


def test_names_are_escaped():
    chart = str(line_chart([Line("<b>", [1], [1.0])], title='"<i>'))
    assert "<b>" not in chart and "<i>" not in chart
    assert "<b>" not in str(bar_chart([Bar("<b>", 0.5)], title="t"))


def test_numbers():
    assert [number(v) for v in (None, float("nan"), 0, 12345, 1234.5, 2.3149, 1e-5)] == [
        "–", "–", "0", "12,345", "1,234", "2.31", "1.0e-05",
    ]  # fmt: skip

"""The figures of a recipe: columns as curves over rows that are numbers, and the paper's numbers beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from bpfree.lab.report.charts import Chart
from bpfree.lab.report.series import short
from bpfree.lab.report.style import DARK, DASHES, LIGHT, SOLID, Mark, on_screen

PAPER = "paper"
MARKS = [Mark(str(place), *hues, SOLID) for place, hues in enumerate(zip(LIGHT, DARK, strict=True))]
"""The marks of a chart's columns, by their place in it: solid lines, because dashed lines are the paper's."""
STYLE = on_screen(MARKS)
_HEIGHT = 300


def charts(recipe: Any, entries: Sequence[Mapping[str, Any]]) -> dict[str, Chart]:
    """Return one chart per heading of the recipe, in page colours; charts without a measured number are left out.

    Args:
        recipe: The recipe.
        entries: Its cells, as :func:`bpfree.lab.tables.result.entries` gives them.
    """
    values = {title: rows(chart, entries) for title, chart in recipe.charts.items()}
    domains = {
        chart.y: _domain([row for title, other in recipe.charts.items() if other.y == chart.y for row in values[title]])
        for chart in recipe.charts.values()
    }
    return {
        title: curve(chart, values[title], domains[chart.y])
        for title, chart in recipe.charts.items()
        if any(row["kind"] != PAPER and row["y"] is not None for row in values[title])
    }


def rows(chart: Any, entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the points of one chart: measured means with their deviation, and the paper's numbers.

    Where there is no number, the point has none, and ends a line: what lies beside it is not known.
    """
    return [
        {"kind": kind, "column": entry["column"], "x": float(entry["row"]), **_placed(entry[mean], entry[std])}
        for entry in entries
        if entry["column"] in chart.columns
        for kind, mean, std in (("measured", "mean", "std"), (PAPER, "paper", "paper_std"))
    ]


def _placed(mean: float | None, std: float | None) -> dict[str, float | None]:
    if mean is None:
        return dict.fromkeys(("y", "low", "high"))
    return {"y": short(mean), "low": short(mean - (std or 0.0)), "high": short(mean + (std or 0.0))}


def curve(chart: Any, points: Sequence[Mapping[str, Any]], domain: Sequence[float] | None) -> Chart:
    """Draw measured numbers as a line with filled points and a band of one standard deviation, the paper's dashed."""
    places = sorted({point["x"] for point in points})
    scale = alt.Scale(type="log" if chart.log else "linear", nice=False)
    axis = alt.Axis(
        values=places, grid=False, labelOverlap="greedy", labelSeparation=2, labelFlush=False, format=",.6~g"
    )
    hues = alt.Scale(domain=list(chart.columns), range=list(STYLE.colours[: len(chart.columns)]))
    base = alt.Chart().encode(
        alt.X("x:Q", title=chart.x, scale=scale, axis=axis), alt.Color("column:N", scale=hues, legend=None)
    )
    measured = base.transform_filter(alt.datum.kind != PAPER)
    given = base.transform_filter(alt.datum.kind == PAPER)
    across = alt.Scale(domain=list(domain), nice=False) if domain else alt.Scale(zero=False)
    y = alt.Y("y:Q", title=chart.y, scale=across, axis=alt.Axis(tickCount=6))
    values = [
        alt.Tooltip("column:N", title="column"),
        alt.Tooltip("kind:N", title="whose"),
        alt.Tooltip("x:Q", title=chart.x),
        alt.Tooltip("y:Q", title=chart.y),
    ]
    layers: list[alt.Chart] = [
        measured.mark_area(aria=False, opacity=0.16).encode(alt.Y("low:Q", scale=across), alt.Y2("high"))
    ]
    if any(point["kind"] == PAPER and point["y"] is not None for point in points):
        outline = alt.Color("column:N", scale=hues, legend=None)
        opened: dict[str, Any] = {"filled": True, "fill": STYLE.paper, "fillOpacity": 1, "strokeWidth": 1.5}
        layers += [
            given.mark_line(aria=False, strokeDash=list(DASHES[1]), strokeWidth=1.25).encode(y),
            given.mark_point(aria=False, size=42, **opened).encode(y, stroke=outline, tooltip=values),
        ]
    layers += [
        measured.mark_line(aria=False, strokeWidth=2).encode(y),
        measured.mark_point(aria=False, size=42, filled=True, opacity=1).encode(y, tooltip=values),
    ]
    data = alt.InlineData(values=[dict(point) for point in points])
    return alt.layer(*layers, data=data).properties(width="container", height=_HEIGHT)


def _domain(points: Sequence[Mapping[str, Any]]) -> tuple[float, float] | None:
    values = [point[end] for point in points for end in ("low", "high") if point[end] is not None]
    ends = [value for value in values if math.isfinite(value)]
    if not ends:
        return None
    pad = 0.04 * (max(ends) - min(ends)) or 1.0
    return short(min(ends) - pad), short(max(ends) + pad)

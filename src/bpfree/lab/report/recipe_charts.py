"""The figures of a recipe: columns as curves over rows that are numbers, and the paper's numbers beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from bpfree.lab.report.series import short
from bpfree.lab.report.style import DASHES, LIGHT, Mark, Style, marks, on_screen

PAPER = "paper"
_HEIGHT = 300


def legend(recipe: Any) -> list[Mark]:
    """How each column that some chart shows is drawn, in all of them alike; solid lines, colour alone tells them."""
    shown = [column for chart in recipe.charts.values() for column in chart.columns]
    most = max((len(chart.columns) for chart in recipe.charts.values()), default=0)
    if len(set(shown)) <= len(LIGHT):
        return marks(list(dict.fromkeys(shown)), {})
    # More columns than hues: the same place in two charts has the same one.
    hues = marks([str(place) for place in range(most)], {})
    places = {column: chart.columns.index(column) for chart in recipe.charts.values() for column in chart.columns}
    return [Mark(column, hues[place].light, hues[place].dark, hues[place].dash) for column, place in places.items()]


def charts(recipe: Any, entries: Sequence[Mapping[str, Any]], found: Sequence[Mark]) -> dict[str, alt.LayerChart]:
    """One chart a heading of the recipe, in page colours; those without any measured number are left out.

    Args:
        recipe: The recipe.
        entries: Its cells, as :func:`bpfree.lab.tables.result.entries` gives them.
        found: How columns are drawn.
    """
    style = on_screen(found)
    values = {title: rows(chart, entries) for title, chart in recipe.charts.items()}
    domains = {
        chart.y: _domain([row for title, other in recipe.charts.items() if other.y == chart.y for row in values[title]])
        for chart in recipe.charts.values()
    }
    return {
        title: curve(chart, values[title], domains[chart.y], style)
        for title, chart in recipe.charts.items()
        if any(row["kind"] != PAPER for row in values[title])
    }


def rows(chart: Any, entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The points of one chart: measured means with their deviation, and the paper's numbers."""
    points = []
    for entry in entries:
        if entry["column"] not in chart.columns:
            continue
        for kind, mean, std in (("measured", "mean", "std"), (PAPER, "paper", "paper_std")):
            if entry[mean] is not None:
                spread = entry[std] or 0.0
                points.append(
                    {
                        "kind": kind,
                        "column": entry["column"],
                        "x": float(entry["row"]),
                        "y": short(entry[mean]),
                        "low": short(entry[mean] - spread),
                        "high": short(entry[mean] + spread),
                    }
                )
    return points


def curve(
    chart: Any, points: Sequence[Mapping[str, Any]], domain: Sequence[float] | None, style: Style
) -> alt.LayerChart:
    """Measured: a line with filled points and a band of one standard deviation. The paper's: open points, dashed."""
    places = sorted({point["x"] for point in points})
    scale = alt.Scale(type="log" if chart.log else "linear", nice=False)
    axis = alt.Axis(
        values=places, grid=False, labelOverlap="greedy", labelSeparation=2, labelFlush=False, format=",.6~g"
    )
    hues = alt.Scale(domain=[mark.label for mark in style.marks], range=list(style.colours))
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
    layers = [measured.mark_area(aria=False, opacity=0.16).encode(alt.Y("low:Q", scale=across), alt.Y2("high"))]
    if any(point["kind"] == PAPER for point in points):
        outline = alt.Color("column:N", scale=hues, legend=None)
        opened = {"filled": True, "fill": style.paper, "fillOpacity": 1, "strokeWidth": 1.5}
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
    ends = [value for point in points for value in (point["low"], point["high"]) if math.isfinite(value)]
    if not ends:
        return None
    pad = 0.04 * (max(ends) - min(ends)) or 1.0
    return short(min(ends) - pad), short(max(ends) + pad)

"""The charts of predictions: calibration and the ROC curve, one line for each rule's first seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt

from bpfree.lab.report import series
from bpfree.lab.report.charts import CHOSEN, Chart, colour, dash, shown
from bpfree.lab.report.series import short
from bpfree.lab.report.style import Style

_CURVES = {
    "Calibration": ("calibration_curve", "predicted", "clicked", "mean predicted probability", "share of clicks"),
    "ROC curve": ("roc", "without_click", "with_click", "share of rows without a click", "share of rows with one"),
}
"""Title -> the entry of a run, the names of its two lists, and the titles of the axes."""


def predictions(comparison: Mapping[str, Any], style: Style) -> dict[str, Chart]:
    """Return the charts by title; those that no run has are left out."""
    found = {}
    for title, (entry, across, up, *titles) in _CURVES.items():
        rows = [
            {"rule": label, "x": short(x), "y": short(y), "place": place}
            for label in series.labels(comparison)
            if (curve := series.first(comparison, label, entry))
            for place, (x, y) in enumerate(zip(curve[across], curve[up], strict=True))
        ]
        if rows:
            found[title] = _lines(rows, titles, style, points=entry == "calibration_curve")
    return found


def _lines(rows: list[dict[str, Any]], titles: list[str], style: Style, *, points: bool) -> Chart:
    """Draw one line for each rule in a square, and its diagonal."""
    end = 1.0 if not points else short(min(1.0, 1.05 * max(row[key] for row in rows for key in ("x", "y"))))
    scale = alt.Scale(domain=[0, end], nice=False)
    axis = alt.Axis(format=".2~f", tickCount=5)
    x = alt.X("x:Q", title=titles[0], scale=scale, axis=axis)
    y = alt.Y("y:Q", title=titles[1], scale=scale, axis=axis)
    line = alt.Chart().mark_line(aria=False, clip=True, strokeWidth=2, point={"size": 18} if points else False)
    tooltip = [alt.Tooltip("rule:N"), alt.Tooltip("x:Q", title=titles[0]), alt.Tooltip("y:Q", title=titles[1])]
    lines = line.encode(
        x, y, colour(style), dash(style), order="place:Q", opacity=shown(True, 1, 0.08), tooltip=tooltip
    )
    ends = alt.InlineData(values=[{"x": place, "y": place} for place in (0.0, end)])
    diagonal = alt.Chart(ends).mark_line(aria=False, color=style.zero, strokeWidth=1, strokeDash=[2, 3]).encode(x, y)
    chart = alt.layer(diagonal, lines, data=alt.InlineData(values=rows))
    return chart.add_params(alt.param(name=CHOSEN, value=[]))

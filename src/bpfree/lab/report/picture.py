"""Learning curves and alignment as one PNG, drawn without a browser."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from bpfree.lab.disk.files import replacing
from bpfree.lab.report import charts, panels, series
from bpfree.lab.report.alignment import curves
from bpfree.lab.report.style import Style, marks, on_paper
from bpfree.lab.settings.length import Length

COLUMNS = 4
WIDTH = 840
HEIGHT = 260
STROKE = 26


def picture(comparison: Mapping[str, Any], path: Path) -> Path:
    """Write the learning curves and, below them, the alignment at each tap to the PNG file `path`.

    Returns:
        `path`.

    Raises:
        ReportError: if `comparison` is not of the format "bpfree-comparison/1".
    """
    series.check(comparison)
    labels = series.labels(comparison)
    style = on_paper(marks(labels, comparison["settings"].get("rules", {})))
    parts = [legend(style), learning(comparison, style), alignment(comparison, style)]
    chart = alt.vconcat(*(part for part in parts if part is not None), spacing=22)
    chart = charts.finish(chart, style).properties(background=style.paper, padding=16)
    png = vl_convert.vegalite_to_png(chart.to_dict(), vl_version=vega_lite(), scale=2)
    path = Path(path)
    with replacing(path) as temporary:
        temporary.write_bytes(png)
    return path


def vega_lite() -> str:
    """Return the version of Vega-Lite that the installed Altair writes, as vl-convert names it: `6.4`."""
    return ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])


def learning(comparison: Mapping[str, Any], style: Style) -> alt.HConcatChart:
    """Draw the task's metric and the training loss, side by side."""
    length = Length.of(comparison["settings"])
    found = [
        charts.curves(rows, panel, style, length=length, interactive=False).properties(
            title=title, width=WIDTH // 2 - 60, height=HEIGHT
        )
        for title, rows, panel in panels.learning(comparison)
    ]
    return alt.hconcat(*found, spacing=36)


def alignment(comparison: Mapping[str, Any], style: Style) -> alt.ConcatChart | None:
    """Draw the charts of alignment, all with the same axis; return None if no cosine was measured."""
    rows = curves(comparison)
    panel = panels.cosine_panel([row for each in rows.values() for row in each])
    columns, length = min(COLUMNS, len(rows)), Length.of(comparison["settings"])
    size = {"width": WIDTH // max(1, columns) - 64, "height": HEIGHT // 2 + 30}
    found = [
        charts.curves(each, panel, style, length=length, interactive=False).properties(
            title=f"Alignment, {title[0].lower()}{title[1:]}", **size
        )
        for title, each in rows.items()
    ]
    return alt.concat(*found, columns=columns, spacing=24) if found else None


def legend(style: Style) -> charts.Chart:
    """Draw all rules, in as many lines as they need: a stroke as in the charts, and the label."""
    rows: list[dict[str, Any]] = []
    left, line = 0.0, 0
    for mark in style.marks:
        width = STROKE + 22 + 7.2 * len(mark.label)
        if left and left + width > WIDTH:
            left, line = 0.0, line + 1
        rows.append({"rule": mark.label, "x": left, "end": left + STROKE, "line": line})
        left += width
    axis: dict[str, Any] = {"axis": None, "scale": alt.Scale(domain=[0, WIDTH])}
    base = alt.Chart().encode(alt.Y("line:O", axis=None))
    stroke = base.mark_rule(strokeWidth=2.5).encode(alt.X("x:Q", **axis), alt.X2("end"))
    stroke = stroke.encode(charts.colour(style), charts.dash(style))
    name = base.mark_text(align="left", dx=6, fontSize=13, color=style.ink)
    name = name.encode(alt.X("end:Q", **axis), text="rule:N")
    return alt.layer(stroke, name, data=alt.InlineData(values=rows)).properties(width=WIDTH, height=20 * (line + 1))

"""The charts, as Altair objects, in the colours of the lab's reports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt

from bpfree.lab.report.charts import colour, dash
from bpfree.lab.report.style import DARK, DASHES, LIGHT, REFERENCE, SOLID, Mark, Style
from common.results import Row
from plots.measured import TIME_RATIO
from plots.targets import CHECKPOINTED, IN_BACKWARD

MIB = 2**20
RATIO_TICKS = [0.2, 0.3, 0.4, 0.5, 0.7, 1, 1.4, 2, 3, 4, 6, 8, 12]
LIMIT = "var(--warm)"
RATIO_WIDTH = 270
# A browser's letters may be wider than those that the chart was laid out with.
WIDE = {"left": 28, "right": 5, "top": 5, "bottom": 5}


def mark(label: str, hue: int | None, way: int = 0) -> Mark:
    """A rule's hue (None: backpropagation's ink), with the dashes of one way to run it."""
    light, dark = REFERENCE[:2] if hue is None else (LIGHT[hue], DARK[hue])
    return Mark(label, light, dark, (SOLID, *DASHES[1:])[way])


MARKS = [
    mark("BP", None),
    mark(CHECKPOINTED, None, 1),
    mark(f"BP, {IN_BACKWARD}", None, 2),
    mark("DFA", 0),
    mark("FDFA, every=4", 3),
    mark("FA", 4),
    mark("streaming DFA", 1),
    mark("streaming DRTP", 2),
    mark("streaming FDFA", 3, 1),
    mark(f"streaming DFA, {IN_BACKWARD}", 1, 2),
    mark(f"streaming DRTP, {IN_BACKWARD}", 2, 2),
]
"""Every subject that is a line in some chart: hues stand for rules, dashes for ways to run them."""


def ratios(rows: Sequence[Row], limits: dict[str, float], kind: str, domain: Sequence[float], title: str) -> Any:
    """A dot for each row's median ratio, a bar between its quartiles, and a red stroke where its limit is.

    The median stands beside it as a number.


    Args:
        rows: One for each line of the chart, from top to bottom; ``label`` names it.
        limits: Of the labels that have one.
        kind: Which ratio of a row, ``time`` or ``throughput``.
        domain: The least and the greatest ratio of the axis.
        title: Title of the axis.
    """
    values = [_ratio(row, kind) | {"limit": limits.get(row["label"])} for row in rows]
    order = [value["label"] for value in values]
    base = alt.Chart().encode(alt.Y("label:N", sort=order, title=None, axis=_names()))
    one = alt.Chart().mark_rule(color="var(--zero)", strokeWidth=1).encode(alt.X(datum=1))
    quartiles = base.mark_rule(strokeWidth=5, opacity=0.35, color="var(--accent)").encode(
        _ratio_axis("lower", domain, title), alt.X2("upper")
    )
    median = base.mark_circle(size=60, opacity=1, color="var(--accent)").encode(_ratio_axis("median", domain, title))
    number = base.mark_text(align="left", fontSize=11, color="currentColor").encode(
        alt.XValue(RATIO_WIDTH + 8), alt.Text("median:Q", format=".2f")
    )
    limit = base.transform_filter("isValid(datum.limit)").mark_tick(color=LIMIT, thickness=2.5, size=19)
    layers = [one, quartiles, median, number, limit.encode(_ratio_axis("limit", domain, title))]
    if any("simulated" in value for value in values):
        shape = base.transform_filter("isValid(datum.simulated)").mark_point(
            shape="diamond", size=55, color="currentColor"
        )
        layers.append(shape.encode(_ratio_axis("simulated", domain, title)))
    return alt.layer(*layers, data=alt.InlineData(values=values)).properties(
        width=300, height=alt.Step(20), padding=WIDE
    )


def _ratio(row: Row, kind: str) -> dict[str, Any]:
    found = row[kind]
    median = found["median"]
    value = {"label": row["label"], "median": median}
    value |= {"lower": found.get("lower", median), "upper": found.get("upper", median)}
    simulated = row.get("simulated") or {}
    return value | ({"simulated": simulated[kind]} if kind in simulated else {})


def _names() -> alt.Axis:
    return alt.Axis(ticks=False, domain=False, labelLimit=400, labelPadding=8)


def _ratio_axis(field: str, domain: Sequence[float], title: str) -> alt.X:
    ticks = [tick for tick in RATIO_TICKS if domain[0] <= tick <= domain[1]]
    scale = alt.Scale(type="log", domain=list(domain), nice=False)
    return alt.X(f"{field}:Q", title=title, scale=scale, axis=alt.Axis(values=ticks, format="~g"))


def bounds(rows: Iterable[Row], kind: str, limits: Iterable[float] = ()) -> list[float]:
    """An axis of ratios that holds all rows, their limits and 1."""
    found = [row[kind].get(part, row[kind]["median"]) for row in rows for part in ("lower", "upper")]
    found += [row["simulated"][kind] for row in rows if kind in (row.get("simulated") or {})]
    return [min([*found, *limits, 1]) * 0.93, max([*found, *limits, 1]) * 1.07]


def memory(rows: Sequence[Row], part: str, domain: Sequence[float], style: Style) -> alt.Chart:
    """A part of the memory of a step over the depth, a line for each subject, both axes logarithmic."""
    values = [{"rule": row["subject"], "depth": row["depth"], "mib": row[part] / MIB} for row in rows]
    depths = sorted({row["depth"] for row in rows})
    ticks = [2.0**power for power in range(-4, 14)]
    scale = alt.Scale(type="log", domain=list(domain), nice=False)
    y_axis = alt.Axis(values=[tick for tick in ticks if domain[0] <= tick <= domain[1]], format="~g")
    chart = alt.Chart(alt.InlineData(values=values)).mark_line(strokeWidth=2.2, point={"size": 30})
    return chart.encode(
        _log_x("depth", depths, "depth, layers"),
        alt.Y("mib:Q", title="MiB", scale=scale, axis=y_axis),
        colour(style),
        dash(style),
    ).properties(width=400, height=320)


def peak_bounds(rows: Iterable[Row]) -> list[float]:
    """An axis of ratios of peak memory that holds all rows and 1."""
    found = [row["peak_bytes"] / row["peak_bytes_reference"] for row in rows]
    return [min([*found, 0.8]) * 0.95, max([*found, 1.2]) * 1.05]


def memory_bounds(rows: Iterable[Row], parts: Sequence[str]) -> list[float]:
    """An axis of mebibytes that holds these parts of all rows."""
    found = [row[part] / MIB for row in rows for part in parts]
    return [min(found) / 1.2, max(found) * 1.2]


def scaling(rows: Sequence[Row], axis: str, part: str, domain: Sequence[float], style: Style, title: str) -> Any:
    """A ratio to backpropagation over what grows, a line for each subject, with the quartiles of times as a band."""
    values = [_scaled(row, axis, part) for row in rows]
    sizes = sorted({row[axis] for row in rows})
    base = alt.Chart().encode(_log_x("size", sizes, axis if axis != "batch" else "batch, samples"), colour(style))
    scale = alt.Scale(type="log", domain=list(domain), nice=False)
    ticks = alt.Axis(values=[tick for tick in RATIO_TICKS if domain[0] <= tick <= domain[1]], format="~g")
    one = alt.Chart().mark_rule(color="var(--zero)", strokeWidth=1).encode(alt.Y(datum=1))
    band = base.mark_area(opacity=0.16, clip=True).encode(
        alt.Y("lower:Q", title=title, scale=scale, axis=ticks), alt.Y2("upper")
    )
    line = base.mark_line(strokeWidth=2.2, point={"size": 26}, clip=True).encode(
        alt.Y("median:Q", title=title, scale=scale, axis=ticks), dash(style)
    )
    return alt.layer(one, band, line, data=alt.InlineData(values=values)).properties(width=190, height=200)


def _scaled(row: Row, axis: str, part: str) -> dict[str, Any]:
    value = {"rule": row["subject"], "size": row[axis]}
    if part == TIME_RATIO:
        return value | {key: row[part][key] for key in ("lower", "median", "upper")}
    ratio = row["peak_bytes"] / row["peak_bytes_reference"]
    return value | {"lower": ratio, "median": ratio, "upper": ratio}


def _log_x(field: str, values: Sequence[int], title: str) -> alt.X:
    scale = alt.Scale(type="log", domain=[values[0], values[-1]], nice=False)
    axis = alt.Axis(values=list(values), format="~s" if values[-1] >= 10000 else "d", grid=False, labelOverlap="greedy")
    return alt.X(f"{field}:Q", title=title, scale=scale, axis=axis)

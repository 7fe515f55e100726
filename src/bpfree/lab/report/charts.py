"""The charts, as Altair objects. They take rows and a style, and know nothing of pages or files."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import altair as alt

from bpfree.lab.report.panels import Panel
from bpfree.lab.report.series import Row, short
from bpfree.lab.report.style import Style
from bpfree.lab.settings.length import Length

Chart: TypeAlias = alt.LayerChart | alt.FacetChart
"""Several layers in one chart, as altair's type of them is."""
# The page's parameter that holds the labels chosen in its legend; empty means all.
CHOSEN = "chosen"
SHOWN = f"length({CHOSEN}) == 0 || indexof({CHOSEN}, datum.rule) >= 0"
# Ten muted hues, with a contrast of 3 : 1 to light and dark pages; the class is also written into its cloud, so colour
# never carries it alone.
CLASS_COLOURS = ["#cc6677", "#5d53d3", "#a99111", "#1d8a3f", "#349dc0"]
CLASS_COLOURS += ["#aa4499", "#3ba292", "#8a8a2d", "#b0622d", "#708090"]


def curves(rows: Sequence[Row], panel: Panel, style: Style, *, length: Length, interactive: bool) -> Chart:
    """Draw mean lines over a run, of this length, with a band from the smallest to the largest seed.

    Interactive charts show the values under the pointer and follow the page's parameter `chosen`.
    """
    base = alt.Chart().encode(epochs(rows, length), colour(style))
    band = base.mark_area(aria=False, clip=True, opacity=1)
    line = base.mark_line(aria=False, clip=True, strokeWidth=2, point=one_epoch(rows))
    layers = [
        band.encode(vertical(panel, "l"), alt.Y2("h"), opacity=shown(interactive, 0.16, 0)),
        line.encode(vertical(panel, "m"), dash(style), opacity=shown(interactive, 1, 0.08)),
    ]
    if panel.zero:
        zero = alt.Chart().mark_rule(aria=False, color=style.zero, strokeWidth=1)
        layers.insert(0, zero.encode(alt.Y(datum=0)))
    if interactive:
        layers.append(hover(base, panel, length))
    placed = {name: panel.place.format(f"datum.{key}") for name, key in (("m", "mean"), ("l", "low"), ("h", "high"))}
    if length.steps:
        placed["step"] = f"datum.epoch * {length.steps}"
    # Given at once: whatever is added to a chart later copies the whole chart.
    transform = [alt.CalculateTransform(calculate=said, **{"as": name}) for name, said in placed.items()]
    given = {"params": [alt.param(name=CHOSEN, value=[]).param]} if interactive else {}
    return alt.layer(*layers, data=alt.InlineData(values=list(rows)), transform=transform, **given)


def hover(base: alt.Chart, panel: Panel, length: Length) -> alt.Chart:
    """Return a point that appears where the pointer is nearest, with its values beside it."""
    near = alt.selection_point(name="near", nearest=True, on="pointerover", clear="pointerout", empty=False)
    titles = {"mean": "mean", "low": "lowest seed", "high": "highest seed"}
    values = [alt.Tooltip(f"{key}:Q", title=title, format=panel.digits) for key, title in titles.items()]
    # Vega-Lite 6.4 loses the text of a tooltip beneath `nearest`, but not what a format function returns.
    names = [alt.Tooltip("rule:N", format="", formatType="asItIs"), alt.Tooltip(f"{length.unit}:Q")]
    return (
        base.mark_point(aria=False, filled=True, size=70, clip=True)
        .encode(vertical(panel, "m"), tooltip=[*names, *values])
        .encode(opacity=alt.condition(near, alt.value(1), alt.value(0)))
        .add_params(near)
    )


def scatter(embedding: Mapping[str, Any], style: Style) -> Chart:
    """Draw points of an embedding in the plane coloured by class, each class's name at their median."""
    points: list[dict[str, Any]] = [
        {"x": short(x), "y": short(y), "class": str(name)}
        for x, y, name in zip(embedding["x"], embedding["y"], embedding["label"], strict=True)
    ]
    classes = sorted({point["class"] for point in points}, key=lambda name: (len(name), name))
    scale = alt.Scale(domain=classes, range=[CLASS_COLOURS[i % 10] for i in range(len(classes))])
    bare = alt.Axis(labels=False, ticks=False, domain=False, grid=False, title=None)
    base = alt.Chart().encode(
        alt.X("x:Q", axis=bare, scale=alt.Scale(zero=False)),
        alt.Y("y:Q", axis=bare, scale=alt.Scale(zero=False)),
    )
    hue = alt.Color("class:N", scale=scale, legend=None)
    dots = base.mark_circle(aria=False, size=16, opacity=0.8).encode(hue, tooltip=["class:N"])
    centre = base.transform_aggregate(x="median(x)", y="median(y)", groupby=["class"])
    bold: dict[str, Any] = {"fontSize": 14, "fontWeight": "bold", "aria": False}
    halo = centre.mark_text(stroke=style.paper, strokeWidth=4, strokeJoin="round", **bold).encode(text="class:N")
    name = centre.mark_text(fill=style.ink, **bold).encode(text="class:N")
    # A name at the edge must not make one plot taller than its neighbours.
    fit = alt.AutoSizeParams(type="fit", contains="padding")
    return alt.layer(dots, halo, name, data=alt.InlineData(values=points)).properties(autosize=fit)


def epochs(rows: Sequence[Row], length: Length) -> alt.X:
    """Return the horizontal axis from the first to the last epoch in whole numbers, or in steps if these count."""
    found = [row["epoch"] for row in rows] or [1]
    start, last = min(found), max(found)
    domain = [start, last] if start < last else [start - 1, last + 1]
    step = epoch_step(last - start)
    values = [epoch for epoch in range(start, last + 1) if epoch % step == 0]
    label: dict[str, Any] = (
        {"labelExpr": f"format(datum.value * {length.steps}, ',')"} if length.steps else {"format": "d"}
    )
    axis = alt.Axis(values=values, grid=False, labelOverlap="greedy", labelSeparation=6, **label)
    return alt.X("epoch:Q", title=length.unit, scale=alt.Scale(domain=domain, nice=False), axis=axis)


def epoch_step(length: int) -> int:
    """Return the smallest of 1, 2, 5, 10, 20, 50 ... that divides `length` epochs into six parts at most."""
    steps = (digit * 10**power for power in itertools.count() for digit in (1, 2, 5))
    return next(step for step in steps if length <= 6 * step)


def vertical(panel: Panel, field: str) -> alt.Y:
    """Return the panel's axis for `field`, which is already placed."""
    return alt.Y(f"{field}:Q", title=panel.title, scale=panel.scale, axis=panel.axis)


def colour(style: Style) -> alt.Color:
    """Return each rule's fixed colour."""
    scale = alt.Scale(domain=[mark.label for mark in style.marks], range=list(style.colours))
    return alt.Color("rule:N", scale=scale, legend=None)


def dash(style: Style) -> alt.StrokeDash:
    """Return each rule's fixed dash pattern."""
    scale = alt.Scale(domain=[m.label for m in style.marks], range=[list(m.dash) for m in style.marks])
    return alt.StrokeDash("rule:N", scale=scale, legend=None)


def shown(interactive: bool, chosen: float, other: float) -> Any:
    """Return the opacity of a rule that the legend shows, and of one that it does not."""
    if not interactive:
        return alt.value(chosen)
    return alt.condition(SHOWN, alt.value(chosen), alt.value(other))


def one_epoch(rows: Sequence[Row]) -> bool:
    """Return whether all rows are of one epoch: a line would have no length, so points are drawn."""
    return len({row["epoch"] for row in rows}) == 1


def finish(chart: alt.TopLevelMixin, style: Style) -> Any:
    """Give text, axes and background the style's colours."""
    lines: dict[str, Any] = {"domainColor": style.grid, "tickColor": style.grid, "gridColor": style.grid}
    text: dict[str, Any] = {"labelColor": style.ink, "titleColor": style.ink, "titleFontWeight": "normal"}
    fonts: dict[str, Any] = {"labelFontSize": 12, "titleFontSize": 12, "titlePadding": 8, "labelOpacity": 0.85}
    return chart.configure(
        font=style.font,
        background="transparent",
        customFormatTypes=True,
        axis=alt.AxisConfig(**lines, **text, **fonts),
        view=alt.ViewConfig(stroke=None),
        title=alt.TitleConfig(color=style.ink, fontSize=13, anchor="start", fontWeight="bold"),
    )

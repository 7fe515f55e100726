"""Vertical axes for the curves: how accuracy, loss and cosine are placed so that differences can be seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from bpfree.lab.report import series, tables
from bpfree.lab.report.series import Row, short
from bpfree.lab.tasks import compared

# Accuracies that get a tick where at least FEWEST_TICKS of them lie in the axis's range.
ACCURACY_TICKS = (
    0,
    20,
    40,
    50,
    60,
    70,
    80,
    85,
    90,
    93,
    95,
    96,
    97,
    98,
    98.5,
    99,
    99.3,
    99.5,
    99.7,
    99.8,
    99.9,
)
FEWEST_TICKS = 4


@dataclass(frozen=True)
class Panel:
    """The vertical axis of a chart of curves.

    Attributes:
        title: title of the axis.
        scale: its scale.
        axis: its ticks and labels.
        place: Vega expression from a value, written `{}`, to what the scale places.
        digits: format of the values shown on hovering.
        zero: whether to draw a line at zero.
    """

    title: str
    scale: alt.Scale
    axis: alt.Axis
    place: str = "{}"
    digits: str = ".3~g"
    zero: bool = False


def learning(comparison: Mapping[str, Any]) -> list[tuple[str, list[Row], Panel]]:
    """Return the charts of the task's metric and of the training loss, each a title, rows and axis."""
    metric = compared(comparison).metric
    score = series.rows(comparison, series.metric(f"eval_{metric.name}"))
    loss = series.rows(comparison, series.metric("train_loss"))
    if metric.name == "accuracy":
        place = accuracy_panel(score, comparison["data"].get("n_eval"))
    else:
        place = score_panel(metric.noun) if metric.better == "higher" else loss_panel(score, metric.noun)
    title = f"{metric.title} on the {tables.measured_on(comparison)} set"
    return [(title, score, place), ("Training loss", loss, loss_panel(loss))]


def accuracy_panel(rows: Sequence[Row], n_eval: int | None) -> Panel:
    """Return the panel of accuracy in per cent, spaced by the logarithm of the error: 98 to 99 is as long as 96 to 98.

    An error of zero is placed at half a sample of `n_eval`.
    """
    floor = 50 / (n_eval or 10_000)
    errors = [max(100 - row[key], floor) for row in rows for key in ("low", "high")] or [100.0, 1.0]
    domain = [min(100.0, max(errors) * 1.04), min(errors) / 1.08]
    ticks = [round(100 - tick, 9) for tick in accuracy_ticks(100 - domain[0], 100 - domain[1])]
    axis = alt.Axis(values=ticks, labelExpr="format(100 - datum.value, '.6~g')", labelOverlap="greedy")
    scale = alt.Scale(type="log", domain=[short(end) for end in domain], nice=False)
    return Panel("accuracy, %", scale, axis, place=f"max(100 - {{}}, {floor:.4g})", digits=".2f")


def accuracy_ticks(low: float, high: float) -> list[float]:
    """Return accuracies from `low` to `high` to label: ACCURACY_TICKS, or round steps in a narrow range."""
    usual = [tick for tick in ACCURACY_TICKS if low <= tick <= high]
    if len(usual) >= FEWEST_TICKS:
        return usual
    return steps(low, high)


def steps(low: float, high: float) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten from `low` to `high`, about FEWEST_TICKS or some more."""
    power = 10.0 ** math.floor(math.log10((high - low) / FEWEST_TICKS))
    step = max(power * digit for digit in (1, 2, 5) if power * digit * FEWEST_TICKS <= high - low)
    return [round(i * step, 9) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def score_panel(title: str) -> Panel:
    """Return the panel of a score that is no percentage (PSNR, which is a logarithm itself, AUC), on a linear axis."""
    return Panel(title, alt.Scale(zero=False), alt.Axis(format=".3~g", tickCount=5))


def loss_panel(rows: Sequence[Row], title: str = "training loss") -> Panel:
    """Return the panel of a loss, on a logarithmic axis, or on a linear one if a loss is not positive."""
    lowest = min((row["low"] for row in rows), default=0)
    if lowest <= 0:
        return score_panel(title)
    domain = [short(lowest / 1.08), short(max(row["high"] for row in rows) * 1.08)]
    axis = alt.Axis(format=",.3~r", values=log_ticks(*domain), labelOverlap="greedy")
    return Panel(title, alt.Scale(type="log", domain=domain, nice=False), axis)


def log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten from `low` to `high`, with more between them, or round steps, where those are few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 6)):
        ticks = [short(digit * 10.0**decade) for decade in decades for digit in digits]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) >= FEWEST_TICKS:
            return inside
    return steps(low, high)


def cosine_panel(rows: Sequence[Row]) -> Panel:
    """Return the panel of cosines, with the axis cut to the data, but always with zero in it."""
    low = min([0.0, *(row["low"] for row in rows)])
    high = max([0.1, *(row["high"] for row in rows)])
    pad = 0.04 * (high - low)
    scale = alt.Scale(domain=[short(low - pad), short(high + pad)], nice=False)
    return Panel("cosine", scale, alt.Axis(format=".2~f", tickCount=5), digits=".3f", zero=True)

"""The table that a comparison ends with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from bpfree.lab.length import Length
from bpfree.lab.tasks import compared

_TAPS = 4  # cosines shown of one rule; of a deeper net the lower and the upper ones


def table(comparison: Mapping[str, Any]) -> Table:
    """The summary of a comparison, one row a rule."""
    settings, data, task = comparison["settings"], comparison["data"], compared(comparison)
    metric, length = task.metric, Length.of(settings)
    taps = shorten([tap["name"] for tap in _alignment(comparison["summary"])])
    result = Table(
        title=f"{data['name']}, {length.total:,} {length.unit}s: {metric.name} on {data['n_eval']:,} "
        f"{settings['measured_on']} {task.samples}",
        caption=f"recovery = {metric.recovery}; "
        "cosine = rule's signal to backpropagation's, per tap; "
        f"s/{length.part} counts training steps alone; peak is the allocator's in one step; "
        "feedback is what the rule stores",
    )
    result.add_column("rule", no_wrap=True)
    for heading in (
        f"{settings['measured_on']}{metric.unit or ' ' + metric.name}",
        "recovery",
        f"cosine at {' '.join(taps)}" if taps else "cosine",
        f"s/{length.part}",
        "time / BP",
        "peak MiB",
        "feedback MiB",
    ):
        result.add_column(heading, justify="right")
    for entry in comparison["summary"]:
        result.add_row(*_row(entry, metric.name))
    return result


def _row(entry: Mapping[str, Any], metric: str) -> list[str]:
    mean, deviation = number(entry[f"{metric}_mean"], "{:.2f}"), entry[f"{metric}_std"]
    spread = "" if deviation is None else f" ± {deviation:.2f}"
    return [
        entry["label"],
        f"{mean}{spread}",
        number(entry["recovery"], "{:.2f}"),
        " ".join(shorten([number(tap["cosine_mean"], "{:.2f}") for tap in entry["alignment"]])) or "-",
        f"{entry['seconds_per_epoch']:.2f}",
        number(entry["time_relative_to_bp"], "{:.2f}"),
        f"{entry['peak_memory_bytes'] / 2**20:.1f}",
        f"{entry['feedback_bytes'] / 2**20:.2f}",
    ]


def number(value: float | None, form: str) -> str:
    """``value`` in this form, or a dash where there is none."""
    return "-" if value is None else form.format(value)


def shorten(cells: Sequence[str]) -> list[str]:
    """All cells, or the first and the last few of many."""
    if len(cells) <= _TAPS:
        return list(cells)
    return [*cells[: _TAPS // 2], "..", *cells[-(_TAPS // 2) :]]


def _alignment(summary: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    return max((entry["alignment"] for entry in summary), key=len, default=[])

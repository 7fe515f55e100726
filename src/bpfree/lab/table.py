"""The table that a comparison ends with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

_TAPS = 4  # cosines shown of one rule; of a deeper net the lower and the upper ones


def table(comparison: Mapping[str, Any]) -> Table:
    """The summary of a comparison, one row a rule."""
    settings, data = comparison["settings"], comparison["data"]
    taps = shorten([tap["name"] for tap in _alignment(comparison["summary"])])
    result = Table(
        title=f"{data['name']}, {settings['epochs']} epochs: accuracy on {data['n_eval']:,} "
        f"{settings['measured_on']} images",
        caption="recovery = (rule - Shallow) / (BP - Shallow); cosine = rule's signal to backpropagation's, per tap; "
        "s/epoch counts training steps alone; memory is the allocator's peak in one step",
    )
    result.add_column("rule", no_wrap=True)
    for heading in (
        f"{settings['measured_on']} %",
        "recovery",
        f"cosine at {' '.join(taps)}" if taps else "cosine",
        "s/epoch",
        "time / BP",
        "peak MiB",
    ):
        result.add_column(heading, justify="right")
    for entry in comparison["summary"]:
        result.add_row(*_row(entry))
    return result


def _row(entry: Mapping[str, Any]) -> list[str]:
    spread = "" if entry["accuracy_std"] is None else f" ± {entry['accuracy_std']:.2f}"
    return [
        entry["label"],
        f"{entry['accuracy_mean']:.2f}{spread}",
        number(entry["recovery"], "{:.2f}"),
        " ".join(shorten([number(tap["cosine_mean"], "{:.2f}") for tap in entry["alignment"]])) or "-",
        f"{entry['seconds_per_epoch']:.2f}",
        number(entry["time_relative_to_bp"], "{:.2f}"),
        f"{entry['peak_memory_bytes'] / 2**20:.1f}",
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

"""The table that a comparison ends with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from bpfree.lab.settings.length import Length
from bpfree.lab.summary import measured_beside
from bpfree.lab.tasks import compared
from bpfree.lab.tasks.task import Metric

_TAPS = 4  # cosines shown of one rule; of a deeper net the lower and the upper ones


def table(comparison: Mapping[str, Any]) -> Table:
    """Return the summary of a comparison, one row a rule."""
    settings, data, task = comparison["settings"], comparison["data"], compared(comparison)
    metric, length = task.metric, Length.of(settings)
    taps = list(dict.fromkeys(tap["name"] for entry in comparison["summary"] for tap in entry["alignment"]))
    result = Table(
        title=f"{data['name']}, {length.total:,} {length.unit}s: {metric.name} on {data['n_eval']:,} "
        f"{settings['measured_on']} {task.samples}",
        caption=f"recovery = {metric.recovery}; "
        "cosine = rule's signal to backpropagation's, per tap; "
        f"s/{length.part} counts training steps alone; peak is the allocator's in one step; "
        "feedback is what the rule stores",
    )
    # On a narrow terminal labels fold, and cosines stand below each other, so that numbers stay whole.
    result.add_column("rule", overflow="fold")
    beside = measured_beside(task, comparison["summary"])
    headings = [also.name.replace("_", "\n") for also in beside]
    for heading in (f"{settings['measured_on']}\n{metric.unit.strip() or metric.name}", *headings, "recovery"):
        result.add_column(heading, justify="right", no_wrap=True)
    cosine = f"cosine at {' '.join(shorten(taps))}" if taps else "cosine"
    result.add_column(cosine, justify="right", min_width=len("-0.00"))
    for heading in (f"s/{length.part}", "time\n/ BP", "peak\nMiB"):
        result.add_column(heading, justify="right", no_wrap=True)
    result.add_column("feedback MiB", justify="right")
    for entry in comparison["summary"]:
        result.add_row(*_row(entry, [metric, *beside], taps))
    return result


def _row(entry: Mapping[str, Any], metrics: Sequence[Metric], taps: Sequence[str]) -> list[str]:
    # By name: a rule may have fewer taps than another.
    cosines = {tap["name"]: tap["cosine_mean"] for tap in entry["alignment"]}
    return [
        entry["label"],
        *(_mean(entry, metric) for metric in metrics),
        number(entry["recovery"], "{:.2f}"),
        " ".join(shorten([number(cosines.get(tap), "{:.2f}") for tap in taps])) if cosines else "-",
        f"{entry['seconds_per_epoch']:.2f}",
        number(entry["time_relative_to_bp"], "{:.2f}"),
        f"{entry['peak_memory_bytes'] / 2**20:.1f}",
        f"{entry['feedback_bytes'] / 2**20:.2f}",
    ]


def _mean(entry: Mapping[str, Any], metric: Metric) -> str:
    digits = f"{{:.{metric.digits}f}}"
    deviation = entry.get(f"{metric.name}_std")
    spread = "" if deviation is None else f" ± {digits.format(deviation)}"
    return f"{number(entry.get(f'{metric.name}_mean'), digits)}{spread}"


def number(value: float | None, form: str) -> str:
    """Return ``value`` in this form, or a dash where there is none."""
    return "-" if value is None else form.format(value)


def shorten(cells: Sequence[str]) -> list[str]:
    """Return all cells, or the first and the last few of many."""
    if len(cells) <= _TAPS:
        return list(cells)
    return [*cells[: _TAPS // 2], "..", *cells[-(_TAPS // 2) :]]

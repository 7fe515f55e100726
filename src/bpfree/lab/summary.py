"""The summary of runs: one line per rule."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bpfree.lab.tasks import CLASSIFICATION
from bpfree.lab.tasks.task import Metric, Task

REFERENCE, CONTROL = "BP", "Shallow"
"""The labels of backpropagation and of the frozen control."""

FORMAT = "bpfree-comparison/1"
"""The form of a comparison's file."""


def summarize(
    runs: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
    metric: Metric = CLASSIFICATION.metric,
    beside: Sequence[Metric] = (),
) -> list[dict[str, Any]]:
    """Return one entry per label, in the order of ``labels``; labels without runs are left out.

    The metric is the mean over seeds and its sample standard deviation (None for one seed); both are None if a seed's
    number is not finite, because a mean of the others would hide that. ``recovery`` is
    (rule - control) / (BP - control), the rule's part of backpropagation's gain over the frozen control; for
    perplexity it is computed from the logarithm, which is the loss. Times and memory are medians over seeds;
    Numbers ``beside`` the metric have a mean and a deviation too, where all runs of a label have them.
    ``time_relative_to_bp`` is the median of the ratios to BP of the same seed.
    Alignment is each tap's mean over seeds, after the last epoch.
    """
    groups = {label: [run for run in runs if run["label"] == label] for label in labels}
    scores = {label: _finite([run[metric.name] for run in group]) for label, group in groups.items()}
    linear = {label: _mean([metric.linear(score) for score in found]) for label, found in scores.items()}
    bp_seconds = {run["seed"]: run["seconds_per_epoch"] for run in groups.get(REFERENCE, [])}
    return [
        {
            "label": label,
            f"{metric.name}_mean": _mean(scores[label]),
            f"{metric.name}_std": deviation(scores[label]),
            **{key: value for number in beside for key, value in _beside(group, number.name).items()},
            "recovery": recovery(linear[label], linear.get(REFERENCE), linear.get(CONTROL)),
            "alignment": _alignment(group),
            "time_relative_to_bp": _relative(group, bp_seconds),
            "seconds_per_epoch": statistics.median(run["seconds_per_epoch"] for run in group),
            "peak_memory_bytes": int(statistics.median(run["peak_memory_bytes"] for run in group)),
            "feedback_bytes": int(statistics.median(run["feedback_bytes"] for run in group)),
            "seeds": len(group),
        }
        for label, group in groups.items()
        if group
    ]


def _beside(group: Sequence[Mapping[str, Any]], name: str) -> dict[str, float | None]:
    values = _finite([run.get(name) for run in group])
    return {f"{name}_mean": _mean(values), f"{name}_std": deviation(values)} if values else {}


def measured_beside(task: Task, summary: Sequence[Mapping[str, Any]]) -> list[Metric]:
    """Return the numbers beside a task's metric that some entry of a summary has."""
    return [number for number in task.beside if any(f"{number.name}_mean" in entry for entry in summary)]


def mean_cosine(taps: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the mean over those taps of one alignment that have a cosine; None if none has."""
    # A tap where no sample has a signal has no cosine: NaN in memory, null in a file.
    return _mean([tap["cosine_mean"] for tap in taps if tap["cosine_mean"] is not None and tap["n_valid"] > 0])


def recovery(score: float | None, reference: float | None, control: float | None) -> float | None:
    """Return (score - control) / (reference - control); None where one is unknown or the two references are equal."""
    if score is None or reference is None or control is None or reference == control:
        return None
    return (score - control) / (reference - control) + 0.0  # no -0.0


def deviation(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation (divided by n - 1); None for less than two values."""
    return statistics.stdev(values) if len(values) > 1 else None


def _finite(values: Sequence[float | None]) -> list[float]:
    """Return the values if all are finite, else none; None is what a file has in place of infinity."""
    found = [value for value in values if value is not None and math.isfinite(value)]
    return found if len(found) == len(values) else []


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _relative(group: Sequence[Mapping[str, Any]], bp_seconds: Mapping[int, float]) -> float | None:
    ratios = [run["seconds_per_epoch"] / bp_seconds[run["seed"]] for run in group if run["seed"] in bp_seconds]
    return statistics.median(ratios) if ratios else None


def _alignment(group: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    taps: dict[str, list[Mapping[str, Any]]] = {}
    for run in group:
        for tap in run["epochs"][-1]["alignment"]:
            taps.setdefault(tap["name"], []).append(tap)
    return [{"name": name, "cosine_mean": mean_cosine(entries)} for name, entries in taps.items()]

"""From single runs to one line a rule."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

REFERENCE, CONTROL = "BP", "Shallow"
"""The labels of backpropagation and of the frozen control."""


def summarize(runs: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> list[dict[str, Any]]:
    """One entry a label, in the order of ``labels``; labels without runs are left out.

    Accuracy is the mean over seeds and its sample standard deviation (None for one seed). ``recovery`` is
    (rule - control) / (BP - control), the part of what backpropagation gains over the frozen control. Times and
    memory are medians over seeds; ``time_relative_to_bp`` is the median of the ratios to BP of the same seed.
    Alignment is each tap's mean over seeds, after the last epoch.
    """
    groups = {label: [run for run in runs if run["label"] == label] for label in labels}
    means = {label: _mean([run["accuracy"] for run in group]) for label, group in groups.items()}
    bp_seconds = {run["seed"]: run["seconds_per_epoch"] for run in groups.get(REFERENCE, [])}
    return [
        {
            "label": label,
            "accuracy_mean": means[label],
            "accuracy_std": deviation([run["accuracy"] for run in group]),
            "recovery": recovery(means[label], means.get(REFERENCE), means.get(CONTROL)),
            "alignment": _alignment(group),
            "time_relative_to_bp": _relative(group, bp_seconds),
            "seconds_per_epoch": statistics.median(run["seconds_per_epoch"] for run in group),
            "peak_memory_bytes": int(statistics.median(run["peak_memory_bytes"] for run in group)),
            "seeds": len(group),
        }
        for label, group in groups.items()
        if group
    ]


def recovery(accuracy: float | None, reference: float | None, control: float | None) -> float | None:
    """(accuracy - control) / (reference - control); None where one is unknown or the two references are equal."""
    if accuracy is None or reference is None or control is None or reference == control:
        return None
    return (accuracy - control) / (reference - control)


def deviation(values: Sequence[float]) -> float | None:
    """The sample standard deviation (divided by n - 1); None for less than two values."""
    return statistics.stdev(values) if len(values) > 1 else None


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _relative(group: Sequence[Mapping[str, Any]], bp_seconds: Mapping[int, float]) -> float | None:
    ratios = [run["seconds_per_epoch"] / bp_seconds[run["seed"]] for run in group if run["seed"] in bp_seconds]
    return statistics.median(ratios) if ratios else None


def _alignment(group: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    cosines: dict[str, list[float]] = {}
    for run in group:
        for tap in run["epochs"][-1]["alignment"]:
            known = cosines.setdefault(tap["name"], [])
            # A tap where no sample has a signal has no cosine: NaN in memory, null in a file.
            if tap["cosine_mean"] is not None and tap["n_valid"] > 0:
                known.append(tap["cosine_mean"])
    return [{"name": name, "cosine_mean": _mean(values)} for name, values in cosines.items()]

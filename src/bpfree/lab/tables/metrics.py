"""The number of a record that a column shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from bpfree.alignment import TapAlignment
from bpfree.errors import nearest
from bpfree.lab.errors import SettingsError
from bpfree.lab.queue.work_protocol import Work
from bpfree.lab.recipe.schema import Column
from bpfree.lab.tables.work import Training
from bpfree.lab.tasks import PUBLISHED_COSINE, TASKS

_ALIGNMENT, _OF = "alignment", "of"
_OF_A_TAP = [*(entry.name for entry in fields(TapAlignment) if entry.name != "name"), PUBLISHED_COSINE]
_OF_A_RUN = ("seconds_per_epoch", "alignment_mean", "peak_memory_bytes", "feedback_bytes", "parameters")
_OF_AN_EPOCH = ("train_loss", "eval_loss")
_BEST, _CHOSEN = "best_", "_at_best_validation"
_BEST_STEP = "best_step"


def check(column: Column, work: Work, recipe: str) -> None:
    """Find out before any run whether there will be such a number.

    Raises:
        SettingsError: There will not.
    """
    if work.metric is None:
        if not isinstance(column.metric, str):
            raise SettingsError(f"{recipe}: columns: {column.name}: name under metric one of the numbers computed.")
        return
    metric = column.metric
    if metric is None:
        return
    if isinstance(metric, Mapping):
        if not {_ALIGNMENT} <= set(metric) <= {_ALIGNMENT, _OF} or not isinstance(metric[_ALIGNMENT], int | str):
            raise SettingsError(f"{recipe}: columns: {column.name}: metric must be a name or {{alignment: TAP}}.")
        number = metric.get(_OF, _OF_A_TAP[0])
        if number not in _OF_A_TAP:
            raise SettingsError(
                f"{recipe}: columns: {column.name}: of {number!r} is not known. {nearest(str(number), _OF_A_TAP)}"
            )
        if isinstance(work, Training) and work.settings.alignment == "never":
            raise SettingsError(f"{recipe}: columns: {column.name}: an alignment is asked for that is never measured.")
        return
    valid = [work.metric, f"train_{work.metric}", f"eval_{work.metric}", f"{_BEST}{work.metric}", _BEST_STEP]
    valid += [*work.measures, *_OF_A_RUN, *_OF_AN_EPOCH]
    if f"validation_{work.metric}" in work.measures:
        valid.append(f"{work.metric}{_CHOSEN}")
    if metric not in valid:
        raise SettingsError(
            f"{recipe}: columns: {column.name}: metric {metric!r} is not known. {nearest(metric, valid)}"
        )


def value(record: Mapping[str, Any], column: Column, metric: str | None) -> float | None:
    """Return the column's number in one record, after the last epoch; None where it has none.

    Args:
        record: The record.
        column: The column.
        metric: The metric of a column that names none.

    Raises:
        SettingsError: The record has no such number or tap.
    """
    asked = metric if column.metric is None else column.metric
    if isinstance(asked, Mapping):
        return _of_tap(record, asked[_ALIGNMENT], asked.get(_OF, _OF_A_TAP[0]), column.name)
    if asked in (f"{_BEST}{metric}", _BEST_STEP):
        best = _best(record, metric)
        return None if best is None else best["step" if asked == _BEST_STEP else f"eval_{metric}"]
    for part in (record.get("values", {}), record, (record.get("epochs") or [{}])[-1]):
        if asked is not None and asked in part:
            return part[asked]
    if asked == f"{metric}{_CHOSEN}":
        better = _better(metric)
        return max(record["epochs"], key=lambda epoch: better(epoch[f"validation_{metric}"]))[f"eval_{metric}"]
    raise SettingsError(f"columns: {column.name}: the record has no {asked!r}. {nearest(str(asked), _names(record))}")


def _best(record: Mapping[str, Any], metric: str | None) -> Mapping[str, Any] | None:
    """Return the first of the best evaluations of the run, which papers report; None if no number was finite."""
    name, better = f"eval_{metric}", _better(metric)
    finite = [epoch for epoch in record["epochs"] if epoch[name] is not None]
    return max(finite, key=lambda epoch: better(epoch[name]), default=None)


def _better(metric: str | None) -> Callable[[float], float]:
    """Return a function that is higher for better values of the metric."""
    higher = any(task.metric.name == metric and task.metric.better == "higher" for task in TASKS.values())
    return lambda value: value if higher else -value


def _names(record: Mapping[str, Any]) -> list[str]:
    return [*record.get("values", record)]


def _of_tap(record: Mapping[str, Any], tap: int | str, number: str, column: str) -> float | None:
    """Return a number of the alignment at a tap, by its name or its place, counted from 1."""
    taps = record["epochs"][-1]["alignment"]
    if not taps:
        return None  # a rule without signals
    names = [entry["name"] for entry in taps]
    if isinstance(tap, int) and 1 <= tap <= len(taps):
        return taps[tap - 1].get(number)
    if tap in names:
        return taps[names.index(tap)].get(number)
    raise SettingsError(f"columns: {column}: there is no tap {tap!r}, only {', '.join(names)}.")

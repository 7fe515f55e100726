"""The numbers of the charts: the runs of a comparison, reduced to mean and range over seeds, one row per epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

from bpfree.errors import BpfreeError
from bpfree.lab.report.text import is_number

FORMAT = "bpfree-comparison/1"
# Rows of all curves of a page together: keeps it below 3 MB whatever the number of rules, taps and epochs.
ROWS = 10_000
FEWEST_EPOCHS = 20


class ReportError(BpfreeError):
    """The comparison cannot be drawn."""


class Row(TypedDict):
    """One point of a curve: mean, smallest and largest value over the seeds that have one."""

    rule: str
    epoch: int
    mean: float
    low: float
    high: float


Value = Callable[[Mapping[str, Any]], object]


def check(comparison: Mapping[str, Any]) -> None:
    """Raise `ReportError` unless `comparison` says that it is of the format read here."""
    found = comparison.get("format")
    if found is None and {"label", "epochs"} <= comparison.keys():
        raise ReportError(
            "This is the record of one run; a report shows a comparison. Compare runs of one rule or several by "
            "`bpfree compare`, which writes the page itself."
        )
    if found != FORMAT:
        raise ReportError(
            f"This is not a comparison the report can read: its format is {found!r}, expected {FORMAT!r}. "
            "Pass the content of a comparison.json that `bpfree compare` of this version wrote."
        )


def labels(comparison: Mapping[str, Any]) -> list[str]:
    """Return the rules' labels in the order of the summary, then any that only the settings name."""
    named = [row["label"] for row in comparison["summary"]]
    return list(dict.fromkeys([*named, *comparison["settings"].get("rules", {})]))


def noun(comparison: Mapping[str, Any]) -> str:
    """Return the noun for labels: rules, or rows or columns of a table."""
    return str(comparison.get("compared", "rule"))


def taps(comparison: Mapping[str, Any]) -> list[str]:
    """Return names of all taps in the order in which they first appear."""
    found: dict[str, None] = {}
    for row in comparison["summary"]:
        found.update((tap["name"], None) for tap in row.get("alignment") or [])
    for run in comparison["runs"]:
        for epoch in run.get("epochs") or []:
            found.update((tap["name"], None) for tap in epoch.get("alignment") or [])
    return list(found)


def metric(name: str) -> Value:
    """Read `name` from the record of an epoch."""
    return lambda epoch: epoch.get(name)


def cosine(*taps: str) -> Value:
    """Read the mean cosine at `taps` from the record of an epoch: the mean over those that have one."""

    def read(epoch: Mapping[str, Any]) -> object:
        entries = [entry for entry in epoch.get("alignment") or [] if entry["name"] in taps]
        found = [entry["cosine_mean"] for entry in entries if is_number(entry.get("cosine_mean"))]
        return sum(found) / len(found) if found else None

    return read


def samples(comparison: Mapping[str, Any], label: str) -> list[Mapping[str, Any]]:
    """Return the evaluations of the first run of `label` after which its model wrote text, first to last."""
    runs = [run.get("epochs") or [] for run in comparison["runs"] if run["label"] == label]
    found = ([epoch for epoch in epochs if epoch.get("sample")] for epochs in runs)
    return next(filter(None, found), [])


def short(value: float) -> float:
    """Return `value` to 4 significant digits."""
    return float(f"{value:.4g}")


def rows(comparison: Mapping[str, Any], value: Value) -> list[Row]:
    """Return one row for each rule and epoch; points without any finite value are left out."""
    points: dict[tuple[str, int], list[float]] = {}
    for run in comparison["runs"]:
        for epoch in run.get("epochs") or []:
            found = value(epoch)
            if is_number(found):
                points.setdefault((run["label"], epoch["epoch"]), []).append(float(found))  # type: ignore[arg-type]
    kept = drawn_epochs(comparison)
    return [
        Row(rule=rule, epoch=epoch, mean=short(sum(v) / len(v)), low=short(min(v)), high=short(max(v)))
        for (rule, epoch), v in sorted(points.items(), key=lambda item: item[0][1])
        if epoch in kept
    ]


def drawn_epochs(comparison: Mapping[str, Any]) -> set[int]:
    """Return the epochs to draw: all, or where those are too many evenly spaced ones with both ends."""
    found = sorted({epoch["epoch"] for run in comparison["runs"] for epoch in run.get("epochs") or []})
    curves = len(labels(comparison)) * (2 + len(taps(comparison)))
    most = max(FEWEST_EPOCHS, ROWS // max(1, curves))
    return set(found if len(found) <= most else evenly(found, most))


def evenly(items: Sequence[int], n: int) -> list[int]:
    """Return `n` of the items at even distances, the first and the last among them."""
    return [items[round(i * (len(items) - 1) / (n - 1))] for i in range(n)]


def first(comparison: Mapping[str, Any], label: str, key: str) -> Any:
    """Return the value of `key` in the first run of `label` that has it, or None."""
    return next((run[key] for run in comparison["runs"] if run["label"] == label and run.get(key)), None)

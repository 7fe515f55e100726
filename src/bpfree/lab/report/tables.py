"""The sentences and tables of the page as plain text; the template sets and escapes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bpfree.lab.report import series, text
from bpfree.lab.settings.length import Length
from bpfree.lab.tasks import compared

Comparison = Mapping[str, Any]


def measured_on(comparison: Comparison) -> str:
    """Return `test` or `validation`."""
    return str(comparison["settings"].get("measured_on") or "evaluation")


def data_name(comparison: Comparison) -> str:
    """Return the name of the data set."""
    return str(comparison["data"].get("name") or "unnamed data")


def kind(comparison: Comparison, label: str) -> str:
    """Return the remark beside a rule's label if it is the reference or the control, else nothing."""
    rule = comparison["settings"].get("rules", {}).get(label, {}).get("rule", label)
    return {"BP": "reference", "Shallow": "frozen control"}.get(rule, "")


def abstract(comparison: Comparison) -> str:
    """Return one sentence on the comparison and its data."""
    settings, data, task = comparison["settings"], comparison["data"], compared(comparison)
    length, noun = Length.of(settings), series.noun(comparison)
    seeds = [row["seeds"] for row in comparison["summary"] if row.get("seeds")]
    times = [f"{text.span(seeds)} seed{'' if max(seeds) == 1 else 's'}"] if seeds else []
    times += [text.count(length.total, length.unit)] if length.total else []
    training = f"{data['n_train']:,} {task.samples} of " if data.get("n_train") else ""
    scored = f"{data['n_eval']:,} " if data.get("n_eval") else ""
    labels = f"{'with' if noun == 'rule' else 'in'} {text.count(len(series.labels(comparison)), noun)}"
    return (
        f"{_models(comparison)}, trained on {training}{data_name(comparison)} {labels}"
        f"{' (' + ', '.join(times) + ' each)' if times else ''}; {task.metric.noun} is measured on "
        f"{scored}{measured_on(comparison)} {task.samples} after the {_measured(comparison)} {length.unit}."
    )


def _measured(comparison: Comparison) -> str:
    return "best" if comparison["settings"].get("patience") else "last"


def _models(comparison: Comparison) -> str:
    """Return the number of models and their size, in words."""
    sizes = {run["parameters"] for run in comparison["runs"] if run.get("parameters")}
    if len(sizes) > 1:
        return f"Models of {text.span(sizes)} parameters"
    return f"One model of {text.span(sizes)} parameters" if sizes else "One model"


def known(comparison: Comparison, key: str) -> bool:
    """Return whether any row of the summary has this number."""
    return any(text.is_number(row.get(key)) for row in comparison["summary"])


def closest(comparison: Comparison) -> str:
    """Return a sentence on the rule closest to backpropagation; empty if no recovery ratio is known."""
    rated = [row for row in comparison["summary"] if text.is_number(row.get("recovery"))]
    reference = [row for row in rated if kind(comparison, row["label"]) == "reference"]
    others = [row for row in rated if not kind(comparison, row["label"])]
    if not reference or not others:
        return ""
    best, metric = max(others, key=lambda row: row["recovery"]), compared(comparison).metric
    found, wanted = (
        text.number(row[f"{metric.name}_mean"], metric.digits) + metric.unit for row in (best, reference[0])
    )
    return (
        f"Closest to backpropagation: {best['label']}, {metric.noun} {found} against {wanted} "
        f"(recovery ratio {text.number(best['recovery'])})."
    )


def unaligned(comparison: Comparison) -> list[str]:
    """Return labels of the rules that have no valid cosine at any tap in any epoch."""
    valid = {row["rule"] for tap in series.taps(comparison) for row in series.rows(comparison, series.cosine(tap))}
    return [label for label in series.labels(comparison) if label not in valid]


def band(comparison: Comparison) -> str:
    """Return a sentence on the bands of the curves."""
    runs = [run["label"] for run in comparison["runs"]]
    if any(runs.count(label) > 1 for label in runs):
        return "Lines are means over seeds; bands reach from the smallest to the largest seed."
    return "Each line is one run: with a single seed there is no band."


def rules(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """Return one line per rule: its label, rule, options, optimiser, learning rate and all other settings."""
    usual = ("rule", "options", "optimizer", "lr")
    lines = []
    for label, settings in comparison["settings"].get("rules", {}).items():
        rest = {key: value for key, value in settings.items() if key not in usual}
        lines.append((label, [*(text.setting(settings.get(key)) for key in usual), text.setting(rest)]))
    return lines


def common(comparison: Comparison) -> list[tuple[str, str]]:
    """Return settings that all rules share, name and value."""
    return pairs({key: value for key, value in comparison["settings"].items() if key != "rules"})


def data(comparison: Comparison) -> list[tuple[str, str]]:
    """Return facts about the data except the checksums, name and value."""
    return pairs({key: value for key, value in comparison["data"].items() if key != "checksums"})


def pairs(values: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Return readable names, and values as text; nested values get the names of all levels except `init_args`."""
    found: list[tuple[str, str]] = []
    for key, value in (values or {}).items():
        name = str(key).replace("_", " ")
        if isinstance(value, Mapping) and value:
            within = "" if key == "init_args" else f"{name} · "
            found += [(within + inner, shown) for inner, shown in pairs(value)]
        else:
            found.append((name, text.setting(value)))
    return found


def checksums(comparison: Comparison) -> list[tuple[str, str]]:
    """Return pairs of a file or array and its checksum."""
    found = comparison["data"].get("checksums") or {}
    if not isinstance(found, Mapping):
        return [(data_name(comparison), text.setting(found))]
    return [(str(name), text.setting(value)) for name, value in found.items()]


def has_rest(lines: Sequence[tuple[str, list[str]]]) -> bool:
    """Return whether any rule has a setting beyond the usual ones."""
    return any(cells[-1] != text.DASH for _, cells in lines)

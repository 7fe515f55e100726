"""Alignment by layer and by kind of tap: where signals lose their direction.

The taps of a deep model are many, but of few kinds: ``blocks.0.attention.value_tap``, ``blocks.1.attention.value_tap``
and so on are of the kind ``attention.value_tap``, in the layers 1, 2 and so on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bpfree.lab.report.text import is_number
from bpfree.tabulate import tabulate

Entries = Iterable[Mapping[str, Any]]
"""The ``alignment`` of one evaluation in a run's record: a mapping for each tap, with its ``name``."""


def kind_and_layer(tap: str) -> tuple[str, int | None]:
    """Return the kind of a tap and its layer, counted from 1; None for a tap outside numbered blocks.

    The first number in the name counts; a tap that is a block as a whole has the name of the list as its kind.
    """
    parts = tap.split(".")
    at = next((place for place, part in enumerate(parts) if part.isdigit()), None)
    if at is None:
        return tap, None
    return ".".join(parts[at + 1 :] or parts[:at]) or "layer", int(parts[at]) + 1


def by_layer(entries: Entries, number: str = "cosine_mean") -> dict[str, dict[int | None, float]]:
    """Return a number of every tap's alignment by kind, in forward order, and by layer; taps without it are left out.

    Args:
        entries: The alignment of one evaluation.
        number: The name of a field of :class:`bpfree.alignment.TapAlignment`.
    """
    found: dict[str, dict[int | None, float]] = {}
    for entry in entries:
        kind, layer = kind_and_layer(entry["name"])
        layers = found.setdefault(kind, {})
        if is_number(entry.get(number)):
            layers[layer] = float(entry[number])
    return {kind: layers for kind, layers in found.items() if layers}


def over_training(run: Mapping[str, Any], number: str = "cosine_mean") -> dict[str, dict[int, float]]:
    """Return the mean over layers by kind and by evaluation, counted from 1, of a run's record."""
    found: dict[str, dict[int, float]] = {}
    for epoch in run.get("epochs") or []:
        for kind, layers in by_layer(epoch.get("alignment") or [], number).items():
            found.setdefault(kind, {})[epoch["epoch"]] = sum(layers.values()) / len(layers)
    return found


def table(values: Mapping[str, Mapping[Any, float]], columns: str) -> str:
    """Return kinds and their values as text, with a column for each layer or evaluation and one for their mean.

    Args:
        values: From :func:`by_layer` or :func:`over_training`.
        columns: What the columns are, ``"layer"`` or ``"evaluation"``.
    """
    keys = sorted({key for row in values.values() for key in row if key is not None})
    rows = []
    for kind, row in values.items():
        cells = [f"{row[key]:.2f}" if key in row else "" for key in keys]
        rows.append([kind, *cells, f"{sum(row.values()) / len(row):.2f}"])
    return "\n".join(tabulate(["tap", *(f"{columns} {key}" for key in keys), "mean"], rows))

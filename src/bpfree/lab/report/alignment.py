"""Alignment on a page: of each tap, or in models with many taps of each kind of tap and each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bpfree.lab.report import series, text
from bpfree.lab.report.alignment_kinds import kind_and_layer
from bpfree.lab.report.series import Row

Comparison = Mapping[str, Any]


def by_kind(taps: Sequence[str]) -> dict[str, dict[int, str]]:
    """Return taps by kind and layer, if one list of layers has several kinds in several of them; else nothing.

    Taps outside the layers belong to no kind.
    """
    found: dict[str, dict[int, str]] = {}
    lists = set[str]()
    for tap in taps:
        kind, layer = kind_and_layer(tap)
        if layer is not None:
            found.setdefault(kind, {})[layer] = tap
            lists.add(tap.partition(f".{layer - 1}")[0])
    repeated = [layers for layers in found.values() if len(layers) > 1]
    return found if len(lists) == 1 and len(repeated) > 1 else {}


def by_layer(taps: Sequence[str]) -> dict[int, list[str]]:
    """Return the taps of each layer, in order."""
    found: dict[int, list[str]] = {}
    for layers in by_kind(taps).values():
        for layer, tap in layers.items():
            found.setdefault(layer, []).append(tap)
    return dict(sorted(found.items()))


def columns(comparison: Comparison) -> dict[str, list[str]]:
    """Return the columns of the summary, heading and taps: a column shows the mean over its taps."""
    taps = series.taps(comparison)
    kinds = {kind: list(layers.values()) for kind, layers in by_kind(taps).items()}
    known = {tap for found in kinds.values() for tap in found}
    return {tap: [tap] for tap in taps if tap not in known} | kinds


def cosine(row: Mapping[str, Any], taps: Sequence[str]) -> str:
    """Return the mean over taps of a summary's cosines."""
    found = [
        entry["cosine_mean"]
        for entry in row.get("alignment") or []
        if entry["name"] in taps and text.is_number(entry.get("cosine_mean"))
    ]
    return text.number(sum(found) / len(found) if found else None)


def curves(comparison: Comparison) -> dict[str, list[Row]]:
    """Return the charts, each a title and its rows; charts without any valid cosine are left out."""
    chosen = {_title(heading, taps): taps for heading, taps in columns(comparison).items()}
    layers = by_layer(series.taps(comparison))
    chosen |= {f"Layer {layer}": taps for layer, taps in layers.items()}
    rows = {title: series.rows(comparison, series.cosine(*taps)) for title, taps in chosen.items()}
    return {title: found for title, found in rows.items() if found}


def _title(heading: str, taps: Sequence[str]) -> str:
    """Return a chart's title; what is aligned may also be a layer's own output, which is known by its weight."""
    if len(taps) > 1:
        return heading
    return f"Layer {heading.removesuffix('.weight')}" if heading.endswith(".weight") else f"Tap {heading}"


def table(comparison: Comparison) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """Return for each label a line for each kind of tap, with a cell for each layer; nothing without kinds."""
    taps = series.taps(comparison)
    kinds, layers = by_kind(taps), by_layer(taps)
    if not kinds:
        return []
    return [
        (
            row["label"],
            [(kind, [cosine(row, [found.get(layer, "")]) for layer in layers]) for kind, found in kinds.items()],
        )
        for row in comparison["summary"]
        if any(cosine(row, [tap]) != text.DASH for tap in taps)
    ]

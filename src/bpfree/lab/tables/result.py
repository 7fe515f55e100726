"""From records to a table's numbers, and the file that keeps both."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bpfree.lab.files import finite, write_text
from bpfree.lab.summary import deviation
from bpfree.lab.tables.ledger import State
from bpfree.lab.tables.metrics import value
from bpfree.lab.tables.plan import Cell
from bpfree.lab.tables.recipe import Column, Recipe, Scale

FORMAT = "bpfree-table/1"
COST_FORMAT = "bpfree-cost/1"
_FINE = 0.05  # a tolerance below this asks for a third digit


def entries(cells: Sequence[Cell], state: State, scale: Scale) -> list[dict[str, Any]]:
    """One entry a cell: the paper's number, the measured ones, their mean, and whether that is within tolerance."""
    return [_entry(cell, state, scale) for cell in cells]


def _entry(cell: Cell, state: State, scale: Scale) -> dict[str, Any]:
    found = {work.seed: _value(cell, state.records[work.key]) for work in cell.works if work.key in state.records}
    numbers = [number for number in found.values() if number is not None]
    mean, expected, tolerance = (statistics.fmean(numbers) if numbers else None), cell.expected, cell.column.tolerance
    known = mean is not None and expected is not None and tolerance is not None
    return {
        "row": cell.row,
        "column": cell.column.name,
        "scale": scale.name,
        "paper": None if expected is None else expected.mean,
        "paper_std": None if expected is None else expected.std,
        "tolerance": tolerance,
        "digits": 2 if tolerance is None or tolerance >= _FINE else 3,
        "mean": mean,
        "std": deviation(numbers),
        "seeds": len(found),
        "within": _within(mean - expected.mean, cell.column) if known else None,
        "wrong": next((state.wrong[work.key] for work in cell.works if work.key in state.wrong), None),
        "keys": [work.key for work in cell.works if work.key in state.records],
    }


def _within(difference: float, column: Column) -> bool:
    return abs(difference) <= column.tolerance or (column.above and difference > 0)


def _value(cell: Cell, record: Mapping[str, Any]) -> float | None:
    return value(record, cell.column, cell.works[0].metric)


def cautions(records: Iterable[Mapping[str, Any]], source: str) -> list[str]:
    """What a reader must know about how the records came about."""
    found = list(records)
    others = sum(record["code"]["source"] != source for record in found)
    said = []
    if others:
        said.append(
            f"{others} of {len(found)} runs were measured with another state of bpfree's code (--again repeats them)."
        )
    versions = sorted({str(record["environment"].get("torch")) for record in found})
    if len(versions) > 1:
        said.append(f"The runs were made with different versions of torch: {', '.join(versions)}.")
    machines = sorted({str(record["environment"].get("gpu") or "the CPU") for record in found})
    if len(machines) > 1:
        said.append(f"The runs were made on different kinds of machines: {', '.join(machines)}.")
    return said + _other_data(found)


def _other_data(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Data sets whose files were not the same in all runs."""
    kinds: dict[str, set[str]] = {}
    for record in records:
        if "data" in record:
            kinds.setdefault(record["data"]["name"], set()).add(str(record["data"]["checksums"]))
    return [f"The files of {name} were not the same in all runs." for name, found in kinds.items() if len(found) > 1]


def document(recipe: Recipe, tables: Mapping[str, Sequence[Any]], records: Mapping[str, Any]) -> dict[str, Any]:
    """What ``results/NAME.json`` holds: the recipe's words, the entries of every scale, and the records behind them."""
    return {
        "format": FORMAT,
        "name": recipe.name,
        "command": recipe.command,
        "title": recipe.title,
        "source": recipe.source,
        "deviations": recipe.deviations,
        "remarks": recipe.remarks,
        "scales": {name: {"seeds": scale.seeds, "cut": scale.cut} for name, scale in recipe.scales.items()},
        "tables": {name: list(found) for name, found in tables.items() if any(entry["seeds"] for entry in found)},
        "records": [records[key] for key in sorted(records)],
    }


def write(document: Mapping[str, Any], folder: Path) -> Path:
    """Write a document as ``NAME.json``, each record in one line: there are hundreds of them."""
    words = json.dumps({**finite(dict(document)), "records": []}, indent=1, ensure_ascii=False, allow_nan=False)
    lines = ",\n  ".join(json.dumps(record, ensure_ascii=False, allow_nan=False) for record in document["records"])
    text = f"{words.removesuffix('[]' + chr(10) + '}')}[\n  {lines}\n ]\n}}\n"
    return write_text(folder / f"{document['name']}.json", text)


def records(path: Path) -> dict[str, dict[str, Any]]:
    """The records of a document by key; none if there is no such file."""
    if not path.is_file():
        return {}
    return {record["key"]: record for record in (of_format(path, FORMAT) or {}).get("records", [])}


def of_format(path: Path, name: str) -> dict[str, Any] | None:
    """A file of bpfree's in the folder of results; None for one that is somebody else's, or none of this format."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return content if isinstance(content, dict) and content.get("format") == name else None

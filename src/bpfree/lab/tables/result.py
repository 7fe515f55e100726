"""From records to a table's numbers, and the file that keeps both."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bpfree.lab.data.samples import PUBLISHED
from bpfree.lab.errors import SettingsError, WriteError
from bpfree.lab.files import finite, read_json, write_text
from bpfree.lab.summary import deviation
from bpfree.lab.tables.ledger import State
from bpfree.lab.tables.metrics import value
from bpfree.lab.tables.plan import Cell
from bpfree.lab.tables.recipe import Column, Recipe, Scale

FORMAT = "bpfree-table/1"
COST_FORMAT = "bpfree-cost/1"
_FINE = 0.05  # a tolerance below this asks for a third digit
_ROUNDING = 1e-9  # of a number: .903 is .015 below .918, and in binary a little more


def entries(cells: Sequence[Cell], state: State, scale: Scale) -> list[dict[str, Any]]:
    """One entry a cell: the paper's number, the measured ones, their mean, and whether that is within tolerance."""
    return [_entry(cell, state, scale) for cell in cells]


def _entry(cell: Cell, state: State, scale: Scale) -> dict[str, Any]:
    try:
        (numbers, wrong), mistake = _numbers(cell, state), None
    except SettingsError as error:  # the column asks for what no record has, which its cells alone must suffer
        numbers, wrong, mistake = [], [], str(error)
    found = [number for number in numbers if number is not None]
    mean, expected = (statistics.fmean(found) if found else None), cell.expected
    # A shortened run is shown beside the paper's number, and is no repetition of it that could agree or not.
    allowed = cell.column.tolerance
    tolerance = None if scale.settings else allowed
    # The mean of the seeds that went well says nothing about a cell of which others did not.
    known = bool(found) and len(found) == len(numbers) and not wrong and None not in (expected, tolerance)
    return {
        "row": cell.row,
        "column": cell.column.name,
        "scale": scale.name,
        "paper": None if expected is None else expected.mean,
        "paper_std": None if expected is None else expected.std,
        "tolerance": tolerance,
        "above": cell.column.above,
        "digits": 2 if allowed is None or allowed >= _FINE else 3,
        "mean": mean,
        "std": deviation(found),
        "seeds": len(found),
        "failed": len(wrong),
        "within": _within(mean, expected.mean, cell.column) if known else None,
        "wrong": next(iter(wrong), mistake),
        "keys": [work.key for work in cell.works if work.key in state.records],
    }


def seeds_of_rows(entries: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """The seeds of each row: the most that a cell of it has."""
    found: dict[str, int] = {}
    for entry in entries:
        found[entry["row"]] = max(entry["seeds"], found.get(entry["row"], 0))
    return found


def _within(mean: float, paper: float, column: Column) -> bool:
    rounding = _ROUNDING * max(abs(mean), abs(paper))
    return abs(mean - paper) <= column.tolerance + rounding or (column.above and mean > paper)


def _numbers(cell: Cell, state: State) -> tuple[list[float | None], list[str]]:
    """The numbers of the finished runs, None where one has none, and why others failed.

    Raises:
        SettingsError: The records have no such number.
    """
    numbers, wrong = [], []
    for work in cell.works:
        record = state.records.get(work.key)
        if work.key in state.wrong:
            wrong.append(state.wrong[work.key])
        elif record is not None and work.metric is not None and record.get(work.metric, 0) is None:
            wrong.append(f"{work.label}, seed {work.seed}: its {work.metric} is not finite; the run has diverged.")
        elif record is not None:
            numbers.append(value(record, cell.column, work.metric))
    return numbers, wrong


def cautions(
    records: Iterable[Mapping[str, Any]],
    source: str | None = None,
    remedy: str = "--again repeats them",
    files: Mapping[str, Mapping[str, str]] | None = None,
) -> list[str]:
    """What a reader must know about how the records came about.

    Args:
        records: The records.
        source: The present state of the code; None where the records are only compared with each other.
        remedy: What helps where it is another.
        files: The present checksums of data sets, by name, as far as they are known.
    """
    found = list(records)
    sources = Counter(record["code"]["source"] for record in found)
    others = len(found) - sources[source]
    said = []
    if source is None and len(sources) > 1:
        said.append(f"The runs were measured with {len(sources)} states of bpfree's code.")
    elif source is not None and others:
        said.append(f"{others} of {len(found)} runs were measured with another state of bpfree's code ({remedy}).")
    versions = sorted({str(record["environment"].get("torch")) for record in found})
    if len(versions) > 1:
        said.append(f"The runs were made with different versions of torch: {', '.join(versions)}.")
    machines = sorted({str(record["environment"].get("gpu") or "the CPU") for record in found})
    if len(machines) > 1:
        said.append(f"The runs were made on different kinds of machines: {', '.join(machines)}.")
    return [*said, *_unpublished(found), *_other_data(found), *_other_files(found, files or {})]


def _other_files(records: Sequence[Mapping[str, Any]], files: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Data sets whose files are others now than runs had."""
    said = []
    for name, checksums in files.items():
        had = [record["data"]["checksums"] for record in records if record.get("data", {}).get("name") == name]
        others = sum(one != checksums for one in had)
        if others:
            said.append(f"{others} of {len(had)} runs on {name} had other files of it than are read now.")
    return said


def _unpublished(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Data sets whose files are not, or not known to be, those that everybody has."""
    read = [record["data"] for record in records if record.get("data", {}).get("origin", PUBLISHED) != PUBLISHED]
    return list(dict.fromkeys(f"The files of {data['name']}: {data['origin']}." for data in read))


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
        "tables": {name: list(found) for name, found in tables.items() if any(map(_ended, found))},
        "records": [records[key] for key in sorted(records)],
    }


def _ended(entry: Mapping[str, Any]) -> bool:
    return bool(entry["keys"] or entry["failed"])


def write(document: Mapping[str, Any], folder: Path) -> Path:
    """Write a document as ``NAME.json``, each record in one line: there are hundreds of them."""
    words = json.dumps({**finite(dict(document)), "records": []}, indent=1, ensure_ascii=False, allow_nan=False)
    lines = ",\n  ".join(json.dumps(record, ensure_ascii=False, allow_nan=False) for record in document["records"])
    text = f"{words.removesuffix('[]' + chr(10) + '}')}[\n  {lines}\n ]\n}}\n"
    return write_text(folder / f"{document['name']}.json", text)


def place(recipe: Recipe, folder: Path) -> Path:
    """Where a recipe's own document lies."""
    return folder / f"{recipe.name}.json"


def records(path: Path) -> dict[str, dict[str, Any]]:
    """The records of a document by key; none if the file is another's."""
    return {record["key"]: record for record in (of_format(path, FORMAT) or {}).get("records", [])}


def own_records(recipe: Recipe, folder: Path) -> dict[str, dict[str, Any]]:
    """The records of a recipe's own document by key; none if there is no such file.

    Raises:
        WriteError: The file is damaged, or somebody else's.
    """
    path = place(recipe, folder)
    if not path.is_file():
        return {}
    try:
        content = read_json(path)
    except WriteError as error:
        raise WriteError(
            f"{path} holds finished runs and is not readable as JSON ({error.__cause__}). Mend it, or move it away to "
            "measure anew what the ledger does not have."
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise WriteError(
            f"{path} is no table of bpfree's, and that of {recipe.path} has its name. Move it, or name another --out."
        )
    if not recipe.is_run_by(content["command"]):
        raise WriteError(
            f"{path} is the table of `{content['command']}`, and that of {recipe.path} has its name. Rename the "
            "recipe, or name another --out; if it is the same and has moved, correct the command in the table."
        )
    return {record["key"]: record for record in content["records"]}


def of_format(path: Path, name: str) -> dict[str, Any] | None:
    """A file of bpfree's in the folder of results; None for one that is somebody else's, or none of this format."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return content if isinstance(content, dict) and content.get("format") == name else None

"""Files with results: rows of measurements, and the runs that they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bpfree.lab.disk.files import read_json, write_json

IDENTITY = ("axis", "net", "subject", "reference")
"""What a row is of. A row of the same identity takes the place of an older one."""

Row = dict[str, Any]


def write(path: Path, run: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Write ``rows`` of ``run`` into the file, which keeps its other rows, and the runs that these come from."""
    before = read_json(path) if path.exists() else {"runs": [], "rows": []}
    # A run that writes its rows one by one is one run.
    runs = before["runs"] if run in before["runs"] else [*before["runs"], dict(run)]
    new = {identity(row): {**row, "run": runs.index(run)} for row in rows}
    kept = [new.pop(identity(row), row) for row in before["rows"]]
    write_json(path, _renumbered(runs, [*kept, *new.values()]))


def identity(row: Row) -> tuple[Any, ...]:
    """What the row is of."""
    return tuple(row.get(key) for key in IDENTITY)


def _renumbered(runs: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> dict[str, Any]:
    """Leave out the runs that no row comes from any more."""
    used = sorted({row["run"] for row in rows})
    return {
        "runs": [runs[number] for number in used],
        "rows": [{**row, "run": used.index(row["run"])} for row in rows],
    }

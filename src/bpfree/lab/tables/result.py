"""The numbers of a table, made from records, and the file that keeps both."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bpfree.lab.data.samples import PUBLISHED
from bpfree.lab.disk.bounded import parse_json
from bpfree.lab.disk.checksums import CHECKSUM, checksum, is_whole, sealed, unsealed
from bpfree.lab.disk.files import json_lines, storable, write_text
from bpfree.lab.errors import DamageError, SettingsError, WriteError
from bpfree.lab.queue.snapshot import State
from bpfree.lab.recipe.schema import Recipe, Scale
from bpfree.lab.summary import deviation
from bpfree.lab.tables.cells import Cell
from bpfree.lab.tables.metrics import value

FORMAT = "bpfree-table/1"
COST_FORMAT = "bpfree-cost/1"
_FINE = 0.05  # a tolerance below this asks for a third digit
_ROUNDING = 1e-9  # of a number: .903 is .015 below .918, and in binary a little more


def entries(cells: Sequence[Cell], state: State, scale: Scale) -> list[dict[str, Any]]:
    """Return one entry per cell: the paper's number, the measured ones, their mean, and whether it is in tolerance."""
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
    tolerance = None if scale.shortens else allowed
    # The mean of the seeds that went well says nothing about a cell of which others did not.
    within = None
    if mean is not None and expected is not None and tolerance is not None and not wrong and None not in numbers:
        within = _within(mean, expected.mean, tolerance, above=cell.column.above)
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
        "within": within,
        "wrong": next(iter(wrong), mistake),
        "keys": [work.key for work in cell.works if work.key in state.records],
    }


def seeds_of_rows(entries: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return the seeds of each row: the most that a cell of it has."""
    found: dict[str, int] = {}
    for entry in entries:
        found[entry["row"]] = max(entry["seeds"], found.get(entry["row"], 0))
    return found


def _within(mean: float, paper: float, tolerance: float, *, above: bool) -> bool:
    rounding = _ROUNDING * max(abs(mean), abs(paper))
    return abs(mean - paper) <= tolerance + rounding or (above and mean > paper)


def _numbers(cell: Cell, state: State) -> tuple[list[float | None], list[str]]:
    """Return the numbers of finished runs (None if a run has none), and why other runs failed.

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
    """Return the cautions for a reader on the origin of the records.

    Args:
        records: The records.
        source: The present state of the code; None to compare the records only with each other.
        remedy: The advice if records are of another state.
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
    """Return the data sets whose files have changed since the runs."""
    said = []
    for name, checksums in files.items():
        had = [record["data"]["checksums"] for record in records if record.get("data", {}).get("name") == name]
        others = sum(one != checksums for one in had)
        if others:
            said.append(f"{others} of {len(had)} runs on {name} had other files of it than are read now.")
    return said


def _unpublished(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the data sets whose files are not, or not known to be, the published ones."""
    read = [record["data"] for record in records if record.get("data", {}).get("origin", PUBLISHED) != PUBLISHED]
    return list(dict.fromkeys(f"The files of {data['name']}: {data['origin']}." for data in read))


def _other_data(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the data sets whose files were not the same in all runs."""
    kinds: dict[str, set[str]] = {}
    for record in records:
        if "data" in record:
            kinds.setdefault(record["data"]["name"], set()).add(str(record["data"]["checksums"]))
    return [f"The files of {name} were not the same in all runs." for name, found in kinds.items() if len(found) > 1]


def document(recipe: Recipe, tables: Mapping[str, Sequence[Any]], records: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of ``results/NAME.json``: the recipe's words, every scale's entries, and their records."""
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
    """Write a document as ``NAME.json``, each record in one line.

    Every record has its checksum, and the document has one of all that stands beside the records, and of theirs.
    """
    records = [sealed(record) for record in storable(document["records"])]
    content = storable({name: value for name, value in document.items() if name != "records"})
    text = json_lines({**content, "records": records, CHECKSUM: _checksum(content, records)})
    return write_text(folder / f"{document['name']}.json", text)


def _checksum(content: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str:
    return checksum({**content, "records": [record[CHECKSUM] for record in records]})


def place(recipe: Recipe, folder: Path) -> Path:
    """Return the path of a recipe's own document."""
    return folder / f"{recipe.name}.json"


def records(path: Path) -> dict[str, dict[str, Any]]:
    """Return the records of a document by key; none if the file is another's.

    Raises:
        DamageError: It is bpfree's, and damaged.
    """
    return {record["key"]: record for record in (of_format(path, FORMAT) or {}).get("records", [])}


def own_records(recipe: Recipe, folder: Path) -> dict[str, dict[str, Any]]:
    """Return the records of a recipe's own document by key; none if there is no such file.

    Raises:
        DamageError: The file is damaged.
        WriteError: It is somebody else's.
    """
    path = place(recipe, folder)
    if not path.is_file():
        return {}
    content = of_format(path, FORMAT, own=True)
    if content is None:
        raise WriteError(
            f"{path} is no table of bpfree's, and that of {recipe.path} has its name. Move it, or name another --out."
        )
    if not recipe.is_run_by(content["command"]):
        raise WriteError(
            f"{path} is the table of `{content['command']}`, and that of {recipe.path} has its name. Rename the "
            "recipe, or name another --out; if it is the same and has moved, move the table away too: the ledger has "
            "its runs."
        )
    return {record["key"]: record for record in content["records"]}


def of_format(path: Path, name: str, *, own: bool = False) -> dict[str, Any] | None:
    """Read a file of bpfree's in the folder of results; None for one that is somebody else's, or of another format.

    Args:
        path: The file.
        name: The format.
        own: True if a file of this name must be JSON.

    Raises:
        DamageError: It is bpfree's, and not as it was written.
    """
    try:
        text = path.read_bytes()
    except OSError as error:  # such as a link to nowhere
        raise DamageError(f"{path} cannot be read ({error.strerror}). Mend or delete it.") from error
    try:
        content = parse_json(text)
    except ValueError as error:
        if own or _is_ours(text):
            raise DamageError(f"{path} is a result of bpfree and not readable as JSON ({error}). {_REMEDY}") from error
        return None
    if not isinstance(content, dict) or (content.get("format") != name and not _is_ours(text)):
        return None
    _check(path, content)
    return _opened(content) if content.get("format") == name else None


def _opened(content: dict[str, Any]) -> dict[str, Any]:
    """Return a document or a cost without checksums."""
    found = unsealed(content)
    return {**found, "records": [unsealed(record) for record in found["records"]]} if "records" in found else found


_OURS = (FORMAT, COST_FORMAT)
_END = re.compile(rb'"checksum": ?"[0-9a-f]{16}"\s*}\s*$')
_REMEDY = "Mend it from a backup, or move it away to measure anew what the ledger does not have."


def _is_ours(text: bytes) -> bool:
    """Return whether a file, even a damaged one, is bpfree's: by its beginning, or by a checksum at its end."""
    return any(f'"{name}"'.encode() in text[:200] for name in _OURS) or bool(_END.search(text, len(text) - 100))


def _check(path: Path, content: dict[str, Any]) -> None:
    """Find out whether a document or a cost is as it was written.

    Raises:
        DamageError: It is not.
    """
    if CHECKSUM not in content:
        raise DamageError(
            f"{path} has no checksum: it is damaged, or of a version that wrote none. If it is whole, "
            f"`python -m bpfree.lab.tables.seal {path}` gives it one."
        )
    if content.get("format") == FORMAT:
        listed = content.get("records")
        found: list[Any] = listed if isinstance(listed, list) else [None]
        for number, record in enumerate(found, start=1):
            if not is_whole(record):
                raise DamageError(f"{path} is damaged: record {number} is not as it was written. {_REMEDY}")
        rest = {name: value for name, value in unsealed(content).items() if name != "records"}
        whole = _checksum(rest, found) == content[CHECKSUM]
    else:
        whole = is_whole(content)
    if not whole:
        raise DamageError(f"{path} is damaged: its checksum is not that of what stands in it. {_REMEDY}")

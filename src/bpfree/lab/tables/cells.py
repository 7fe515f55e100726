"""The cells of a recipe, and their runs."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bpfree.errors import nearest
from bpfree.lab.errors import DataError, SettingsError
from bpfree.lab.queue.work_protocol import Work
from bpfree.lab.recipe.schema import Column, Expected, Recipe, Scale
from bpfree.lab.settings.plain_values import plain
from bpfree.lab.tables.metrics import check
from bpfree.lab.tables.run_data import ANY_FOLDER
from bpfree.lab.tables.work import Training, of_records
from bpfree.lab.tables.work import works as of_settings


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Attributes:
        row: Its row's name.
        column: Its column.
        expected: The paper's number, if it has one.
        works: The runs that it is the mean of, one per seed.
        absent: Why its data cannot be read; it then has the runs alone that have a record. None if they can.
    """

    row: str
    column: Column
    expected: Expected | None
    works: tuple[Work, ...]
    absent: str | None = None

    @property
    def name(self) -> str:
        """``ROW/COLUMN``."""
        return f"{self.row}/{self.column.name}"


def plan(
    recipe: Recipe,
    scale: Scale,
    seeds: int | None = None,
    chosen: Sequence[str] = (),
    data_dir: str | None = None,
    records: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Cell]:
    """Return the cells of a table, in its order.

    Args:
        recipe: The table.
        scale: The scale that is run.
        seeds: Seeds a cell, in place of the scale's own number.
        chosen: Names of cells (``ROW/COLUMN``), rows or columns; empty for all.
        data_dir: The folder of the data.
        records: The table's own records, by key: a cell whose data are not there has its runs among these. None if
            the data of all cells must be there.

    Raises:
        SettingsError: A name is not known, or a setting means nothing.
        DataError: The data may be any folder's, and none is given; or it cannot be read, and without records.
    """
    count = count_seeds(scale, seeds)
    known: dict[str, tuple[tuple[Work, ...], str | None]] = {}
    cells = []
    for row, column in chosen_cells(recipe, chosen):
        settings = recipe.settings(row, column.name, scale)
        # Columns that show several numbers of one run ask for the same.
        same = json.dumps([row, plain(settings)], sort_keys=True)
        if same not in known:
            label = f"{row} / {column.name}" if recipe.by_cell else row
            try:
                known[same] = _works(recipe, label, settings, count, data_dir), None
            except DataError as error:
                if records is None or data_dir is None:
                    raise
                known[same] = of_records(label, settings, records), str(error)
        found, absent = known[same]
        for work in found[:1]:
            check(column, work, recipe.name)
        cells.append(Cell(row, column, recipe.expected.get(row, {}).get(column.name), found, absent))
    return cells


def count_seeds(scale: Scale, asked: int | None) -> int:
    """Return the seeds a cell: as many as are asked for, else the scale's.

    Raises:
        SettingsError: They are fewer than one.
    """
    if asked is not None and asked < 1:
        raise SettingsError(f"--seeds {asked} must be at least 1.")
    return scale.seeds if asked is None else asked


def _works(recipe: Recipe, label: str, settings: dict[str, Any], count: int, data_dir: str | None) -> tuple[Work, ...]:
    try:
        found = of_settings(label, settings, count, data_dir)
    except SettingsError as error:
        raise SettingsError(f"{recipe.name}: {error}") from error
    if data_dir is None and isinstance(found[0], Training) and found[0].options.data in ANY_FOLDER:
        raise DataError(
            f"{recipe.name}: {label}: pass --data-dir DIR, even to show what is finished. The data "
            f"{found[0].options.data} may be any folder's, and runs on them are known by the files."
        )
    return found


def chosen_cells(recipe: Recipe, names: Sequence[str]) -> list[tuple[str, Column]]:
    """Return row and column of the cells that are named, in the table's order; of all if none is.

    Raises:
        SettingsError: There is no such cell.
    """
    cells = {
        f"{row}/{column.name}": (row, column)
        for row, column in itertools.product(recipe.rows, recipe.columns.values())
        if not recipe.empty(row, column.name)
    }
    for name in names:
        if name not in cells and name not in recipe.rows and name not in recipe.columns:
            hint = nearest(name, [*recipe.rows, *recipe.columns, *cells])
            raise SettingsError(f"--cell {name}: {recipe.name} has no such cell. {hint}")
    return [
        (row, column)
        for name, (row, column) in cells.items()
        if not names or not {name, row, column.name}.isdisjoint(names)
    ]


def works(cells: Iterable[Cell]) -> list[Work]:
    """Return the different runs of these cells, seed by seed: an unfinished table has all cells first."""
    found = {entry.key: entry for cell in cells for entry in cell.works}
    return sorted(found.values(), key=lambda entry: entry.seed)

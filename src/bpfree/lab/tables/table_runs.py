"""The runs of a table: its recipe is read, its cells are planned and the ledger is asked once, for all who ask."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from bpfree.lab.disk.leftovers import sweep
from bpfree.lab.errors import DataError, RunError
from bpfree.lab.queue.snapshot import State
from bpfree.lab.queue.work_protocol import Work
from bpfree.lab.recipe.schema import Recipe, Scale
from bpfree.lab.tables import result, run_data
from bpfree.lab.tables.cells import Cell, chosen_cells, count_seeds, plan, works
from bpfree.lab.tables.command_options import RecipeOptions
from bpfree.lab.tables.provenance import source
from bpfree.lab.tables.work import Training
from bpfree.lab.tables.workers import run_all


class TableRuns:
    """A recipe's cells at every scale, and what the ledger has of their runs.

    Args:
        recipe: The recipe.
        options: Which part of it is asked for, and where records are.
        again: Only records of the present code count.

    Attributes:
        recipe: The recipe.
        scale: The scale that is asked for.

    Raises:
        SettingsError: A name or a value in the recipe or the options means nothing.
        DataError: The data may be any folder's, and none is given that can be read.
        WriteError: The file of the recipe's name in the folder of results is another's.
        DamageError: A file in the folder of results is damaged.
        LedgerError: The ledger's database does not answer.
    """

    def __init__(self, recipe: Recipe, options: RecipeOptions, *, again: bool = False) -> None:
        self.recipe, self.scale, self._options = recipe, recipe.scale(options.scale), options
        self._asked_seeds = count_seeds(self.scale, options.seeds)
        self._chosen = {(row, column.name) for row, column in chosen_cells(recipe, options.cell or ())}
        self._own = result.own_records(recipe, Path(options.out))
        self._planned: dict[str, tuple[int, list[Cell]]] = {}
        known = max([options.seeds or 0, *(record["seed"] + 1 for record in self._own.values())])
        wanted = [work.key for scale in recipe.scales.values() for work in self._wanted(scale, known)]
        self._require_data()
        self._order = options.order(recipe, again=again)
        self._ledger = self._order.open()
        self._seen = self._ledger.snapshot()
        self._adopt(self._own | self._of_other_tables(set(wanted)))

    def _cells(self, scale: Scale, seeds: int) -> list[Cell]:
        """Return all cells of a scale with so many seeds; they are planned anew only where they had fewer."""
        planned, cells = self._planned.get(scale.name, (0, []))
        if seeds > planned:
            cells = plan(self.recipe, scale, seeds, data_dir=self._options.data_dir, records=self._own)
            self._planned[scale.name] = seeds, cells
        return [replace(cell, works=tuple(work for work in cell.works if work.seed < seeds)) for cell in cells]

    def _wanted(self, scale: Scale, known: int) -> list[Work]:
        """Plan a scale with all seeds that are ``known``; return the runs whose records may lie in other tables."""
        seeds = max(scale.seeds, self._options.seeds or 0)
        return [work for work in works(self._cells(scale, max(seeds, known))) if work.seed < seeds]

    def _require_data(self) -> None:
        """Find out whether the data of what is asked for are there; others may be missing.

        Raises:
            DataError: They are not.
        """
        for cell in self.asked():
            if cell.absent is not None:
                raise DataError(cell.absent)

    def _of_other_tables(self, wanted: Container[str]) -> dict[str, dict[str, Any]]:
        """Read the records of these keys that lie in other tables' files; the first file with one is taken."""
        folder, found = Path(self._options.out), dict[str, dict[str, Any]]()
        for path in sorted(set(folder.glob("*.json")) - {result.place(self.recipe, folder)}):
            found = {key: record for key, record in result.records(path).items() if key in wanted} | found
        return found

    def _adopt(self, records: Mapping[str, Mapping[str, Any]]) -> None:
        missing = {key: record for key, record in records.items() if not self._seen.has_record(key)}
        if missing:
            self._ledger.adopt(missing)
            self._seen = self._ledger.snapshot()

    def run_missing(self, workers: int, console: Console | None) -> RunError | None:
        """Run what is asked for and has no record.

        Args:
            workers: The number of processes that run it.
            console: Where progress is shown; None shows nothing.

        Returns:
            Why it could not go on, or None. What was found until then counts.

        Raises:
            LedgerError: The ledger's database does not answer.
        """
        asked, stopped = works(self.asked()), None
        sweep(self._order.scratch, below=True)
        if self._seen.state(asked).records.keys() >= {work.key for work in asked}:
            return None
        try:
            run_all(self._order, asked, self._ledger, workers, console)
        except RunError as error:
            stopped = error
        self._seen = self._ledger.snapshot()
        return stopped

    def asked(self) -> list[Cell]:
        """Return the chosen cells, with the seeds that are asked for, else the scale's."""
        return self._choose(self._cells(self.scale, self._asked_seeds))

    def shown(self, scale: Scale | None = None) -> list[Cell]:
        """Return the chosen cells, with the seeds that are asked for, else all that there are.

        Args:
            scale: A scale; None for the one that is asked for.
        """
        scale = scale or self.scale
        seeds = max(scale.seeds, self._seen.seeds) if self._options.seeds is None else self._options.seeds
        return self._choose(self._cells(scale, seeds))

    def _choose(self, cells: Iterable[Cell]) -> list[Cell]:
        return [cell for cell in cells if (cell.row, cell.column.name) in self._chosen]

    def state(self, cells: Iterable[Cell]) -> State:
        """Return how far the runs of these cells are."""
        return self._seen.state(works(cells))

    def document(self) -> dict[str, Any]:
        """Return all that the ledger has of the recipe, at every scale, with every seed and of any code."""
        seen = self._seen.of_any_code()
        tables: dict[str, list[dict[str, Any]]] = {}
        records: dict[str, dict[str, Any]] = {}
        for scale in self.recipe.scales.values():
            cells = self._cells(scale, max(scale.seeds, seen.seeds))
            state = seen.state(works(cells))
            tables[scale.name] = result.entries(cells, state, scale)
            records |= state.records
        return result.document(self.recipe, tables, records)

    def cautions(self, cells: Sequence[Cell], state: State) -> list[str]:
        """Return what a reader must know about how the records came about, beside the present code and data."""
        data = [(work.options.data, work.options.reading) for work in works(cells) if isinstance(work, Training)]
        files = run_data.at_hand(data, self._options.data_dir)
        return result.cautions(state.records.values(), source(), files=files)

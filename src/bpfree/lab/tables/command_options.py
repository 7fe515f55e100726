"""The options of ``bpfree table``, ``tune`` and ``report``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bpfree.lab.errors import SettingsError
from bpfree.lab.recipe.locate import find, names
from bpfree.lab.recipe.reading import read
from bpfree.lab.recipe.schema import Recipe
from bpfree.lab.running.loggers import USUAL

if TYPE_CHECKING:
    from bpfree.lab.tables.workers import Order


@dataclass(frozen=True, kw_only=True)
class ChosenOptions:
    """The choice of a recipe and of a part of it, and the places of its data and runs.

    Args:
        name: A recipe: one of bpfree's by its name (``bpfree table --list``), or the path of a YAML file of your own.
        scale: The part of the published experiment that is run: full, or another of the recipe's scales.
        cell: Only these cells, rows or columns of the table.
        data_dir: The folder of the data, or one in which each data set has a folder of its name.
        ledger: The database of finished runs: a file (SQLite), or a URL such as postgresql://USER@HOST/NAME, through
            which several machines share the work.
        trust: Let a recipe of your own run the code that it names. Read it first: what it names is imported.
    """

    name: str | None = None
    scale: str = "full"
    cell: list[str] | None = None
    data_dir: str | None = None
    ledger: str = "runs/ledger.db"
    trust: bool = False

    def recipe(self) -> Recipe:
        """Read the recipe.

        Raises:
            SettingsError: None is named, or there is no such recipe.
            TrustError: It names code, and nobody has vouched for it.
        """
        if self.name is None:
            raise SettingsError(f"Name a recipe: {', '.join(names())}, or a YAML file of your own.")
        return read(find(self.name), trust=self.trust)

    def order(self, recipe: Recipe, *, again: bool = False) -> Order:
        """Return what workers need to know of the recipe and its chosen part."""
        # The database's packages are not loaded to answer --help.
        from bpfree.lab.tables.workers import Order

        return Order(
            recipe=recipe.path.resolve(),
            scale=self.scale,
            seeds=None,
            cells=tuple(self.cell or ()),
            ledger=self.ledger,
            data_dir=self.data_dir,
            scratch=Path("runs") / "tables",
            again=again,
            trust=self.trust,
        )


@dataclass(frozen=True, kw_only=True)
class RecipeOptions(ChosenOptions):
    """The options that the commands on a recipe's results share.

    Args:
        seeds: The number of seeds per cell (0, 1, ...), in place of the scale's number.
        out: The folder for results; records in its NAME.json count as finished.
    """

    seeds: int | None = None
    out: str = "results"

    def order(self, recipe: Recipe, *, again: bool = False) -> Order:
        """Return what workers need to know of the recipe and its chosen part."""
        return replace(super().order(recipe, again=again), seeds=self.seeds)


@dataclass(frozen=True, kw_only=True)
class TableOptions(RecipeOptions):
    """Run what is missing of a published table, and show it beside the paper's numbers.

    Args:
        list: Show the recipes that come with bpfree.
        cost: Run nothing; show what the table takes on this machine and on a GPU, from one measured step of each row.
        workers: Processes that run cells; they and those of other commands and machines share the ledger.
        again: Measure anew what was measured with another state of bpfree's code; the older records stay.
        logger: Another place for the numbers of every evaluation, as for train.
    """

    list: bool = False
    cost: bool = False
    workers: int = 1
    again: bool = False
    logger: str = USUAL

    def order(self, recipe: Recipe, *, again: bool = False) -> Order:
        """Return what workers need to know of the recipe and its chosen part."""
        return replace(super().order(recipe, again=again), logger=self.logger)


@dataclass(frozen=True, kw_only=True)
class TuneOptions(ChosenOptions):
    """Choose a recipe's settings on held-out training images or a text's validation file; write a recipe with the best.

    Args:
        validation: Training images that are held out, and that settings are chosen on. Text has a validation file.
        sampler: Every combination of the values under the recipe's search (grid), or values in their range that look
            promising after the earlier tries (tpe).
        trials: Tries a cell; for a grid, by default all of its combinations.
        to: The recipe to write; by default NAME-tuned.yaml.
    """

    validation: int = 5000
    sampler: Literal["grid", "tpe"] = "grid"
    trials: int | None = None
    to: str | None = None


@dataclass(frozen=True, kw_only=True)
class ReportOptions(RecipeOptions):
    """Make the HTML page of a recipe, or of a comparison.json, from its finished runs."""

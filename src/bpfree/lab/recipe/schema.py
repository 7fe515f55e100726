"""Recipes: what a table is, with its cells' settings and the numbers that a paper gives for them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from bpfree.errors import nearest
from bpfree.lab.errors import SettingsError
from bpfree.lab.options.training import TrainOptions
from bpfree.lab.recipe.locate import ENDINGS, FOLDER
from bpfree.lab.recipe.merging import merged
from bpfree.lab.settings import RuleOverrides

_OF_THE_COMMAND = {"data_dir", "out", "settings", "seed", "resume", "logger"}  # not the recipe's business
_OPTIONS = [entry.name for kind in (TrainOptions, RuleOverrides) for entry in fields(kind)]
SETTINGS = [
    *(name for name in dict.fromkeys(_OPTIONS) if name not in _OF_THE_COMMAND),
    "details",
    "function",
    "arguments",
]
"""The settings of a cell: options of ``bpfree train`` and of a rule, if pictures are kept, or a function."""


@dataclass(frozen=True)
class Expected:
    """A paper's number for a cell: the mean, and the standard deviation if the paper gives one."""

    mean: float
    std: float | None = None


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: Its heading.
        metric: The number of a run's record that it shows: a name, or ``{"alignment": tap}``; None for the task's
            metric.
        tolerance: The largest distance allowed between the measured mean and the paper's; None if there is no limit.
        above: True if it may be above the paper's by any amount.
        settings: The settings that its cells share.
    """

    name: str
    metric: str | dict[str, Any] | None = None
    tolerance: float | None = None
    above: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scale:
    """The part of a published experiment that is run.

    Attributes:
        name: ``full``, or ``reduced`` and the like.
        seeds: The number of seeds.
        cut: The cuts, in words; empty for the full scale.
        settings: The settings of all cells that differ from the full scale.
        rows: Row -> what differs in its cells alone.
        columns: Column -> what differs in its cells alone.
        cells: ``ROW/COLUMN`` -> what differs in that cell alone.
    """

    name: str
    seeds: int = 1
    cut: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    columns: dict[str, dict[str, Any]] = field(default_factory=dict)
    cells: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def shortens(self) -> bool:
        """True if some cell's settings differ from the full scale, and not only the number of seeds."""
        return bool(self.settings or self.rows or self.columns or self.cells)

    def over(self, row: str, column: str) -> dict[str, Any]:
        """Return what differs in a cell: particular settings override general ones."""
        own = (self.rows.get(row, {}), self.columns.get(column, {}), self.cells.get(f"{row}/{column}", {}))
        return merged(self.settings, *own)


@dataclass(frozen=True)
class Chart:
    """A figure of a recipe whose rows are numbers: columns as curves over the rows.

    Attributes:
        columns: The columns that are drawn.
        x: The title of the horizontal axis: the meaning of the rows' numbers.
        y: The title of the vertical axis. Charts of the same title share an axis.
        log: True places rows by their logarithm.
    """

    columns: list[str]
    x: str
    y: str
    log: bool = False


@dataclass(frozen=True)
class Recipe:
    """A table.

    Attributes:
        name: The name of its file.
        path: Its file.
        title: Its title.
        source: Where the expected numbers are from: paper, table, and what else helps to find them.
        base: Settings of all cells.
        rows: Row -> what its cells have in common.
        columns: The columns.
        cells: ``ROW/COLUMN`` -> what is particular to that cell; None where the table has no such cell.
        expected: Row -> column -> the paper's number.
        scales: Scale by name.
        deviations: Differences from the paper, or of the paper from its code, a sentence each.
        search: Settings that ``bpfree tune`` chooses, and among which values.
        remarks: Other sentences that a reader must know, such as the explanation of a deviating result.
        charts: Figures of the table, by heading.
    """

    name: str
    path: Path
    title: str
    source: dict[str, Any]
    base: dict[str, Any]
    rows: dict[str, dict[str, Any]]
    columns: dict[str, Column]
    cells: dict[str, dict[str, Any] | None]
    expected: dict[str, dict[str, Expected]]
    scales: dict[str, Scale]
    deviations: list[str]
    search: dict[str, Any]
    remarks: list[str]
    charts: dict[str, Chart]

    @property
    def command(self) -> str:
        """The command that runs it, with its name, or the path of a user's file from the current folder."""
        if self.path.resolve().parent == FOLDER.resolve():
            return f"bpfree table {self.name}"
        return f"bpfree table {shlex.quote(os.path.relpath(self.path.parent.resolve() / self.path.name))}"

    def repeated(self, scale: Scale, seeds: int, cells: Sequence[str]) -> str:
        """Return the command that makes a part of the table again.

        Args:
            scale: The scale.
            seeds: The number of seeds per cell.
            cells: The chosen cells; empty for all.
        """
        words = [f"--scale {shlex.quote(scale.name)}"] if scale.name != "full" else []
        words += [f"--cell {shlex.join(cells)}"] if cells else []
        words += [f"--seeds {seeds}"] if seeds != scale.seeds else []
        return " ".join([self.command, *words])

    def is_run_by(self, command: str) -> bool:
        """Return whether a command runs this file; it may have been given in another folder, so this is a guess."""
        name = Path(shlex.split(command)[-1])
        if name.suffix not in ENDINGS or self.path.resolve().parent == FOLDER.resolve():
            return command == self.command
        if name.is_file():
            return name.samefile(self.path)
        below = tuple(part for part in name.parts if part != os.pardir)
        return self.path.resolve().parts[-len(below) :] == below

    def scale(self, name: str) -> Scale:
        """Return the scale of this name.

        Raises:
            SettingsError: There is none.
        """
        return self.scales[known(name, self.scales, f"--scale {name}", self.name)]

    @property
    def by_cell(self) -> bool:
        """True if the cells of a row need different runs, and do not only show different numbers of one run."""
        return any(column.settings for column in self.columns.values()) or any(self.cells.values())

    def empty(self, row: str, column: str) -> bool:
        """Return whether the table has no such cell."""
        return self.cells.get(f"{row}/{column}", {}) is None

    def settings(self, row: str, column: str, scale: Scale) -> dict[str, Any]:
        """Return a cell's settings: particular ones override general ones, and those of the scale override all."""
        own = self.cells.get(f"{row}/{column}") or {}
        return merged(self.base, self.rows[row], self.columns[column].settings, own, scale.over(row, column))


def known(name: Any, valid: Any, where: str, recipe: str) -> Any:
    """Return ``name``, which is one of ``valid``.

    Raises:
        SettingsError: It is not.
    """
    if name not in valid:
        raise SettingsError(f"{recipe}: {where} is not known. {nearest(str(name), list(valid))}")
    return name

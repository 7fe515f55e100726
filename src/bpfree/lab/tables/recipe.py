"""Recipes: one YAML file a table, with its cells' settings and the numbers that a paper gives for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from jsonargparse import get_loader

from bpfree.errors import nearest
from bpfree.lab.errors import SettingsError
from bpfree.lab.options import TrainOptions
from bpfree.lab.settings import RuleOverrides
from bpfree.lab.tables.inherit import CLASSES, merged

FOLDER = Path(__file__).parents[1] / "recipes"
_OF_THE_COMMAND = {"data_dir", "out", "settings", "seed", "resume"}  # not the recipe's business
_OPTIONS = [entry.name for kind in (TrainOptions, RuleOverrides) for entry in fields(kind)]
SETTINGS = [
    *(name for name in dict.fromkeys(_OPTIONS) if name not in _OF_THE_COMMAND),
    "details",
    "function",
    "arguments",
]
"""What a cell can be set to: the options of ``bpfree train`` and of a rule, if pictures are kept, or a function."""


@dataclass(frozen=True)
class Expected:
    """What a paper gives for a cell: its mean, and the standard deviation if it says one."""

    mean: float
    std: float | None = None


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: Its heading.
        metric: Which number of a run's record stands in it: a name, or ``{"alignment": tap}``; None for what the task
            is measured by.
        tolerance: How far the measured mean may be from the paper's; None if nothing is said.
        above: Whether it may be above the paper's by any amount.
        settings: What its cells have in common.
    """

    name: str
    metric: str | dict[str, Any] | None = None
    tolerance: float | None = None
    above: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scale:
    """How much of a published experiment is run.

    Attributes:
        name: ``full``, or ``reduced`` and the like.
        seeds: The number of seeds.
        cut: What was cut, in words; empty for the full scale.
        settings: What differs from the full scale.
    """

    name: str
    seeds: int = 1
    cut: str = ""
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Chart:
    """A figure of a recipe whose rows are numbers: columns as curves over the rows.

    Attributes:
        columns: The columns that are drawn.
        x: What the rows' numbers are.
        y: What the columns' numbers are. Charts of the same words share an axis.
        log: Whether rows are placed by their logarithm.
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
        title: What it shows.
        source: Where the expected numbers are from: paper, table, and what else helps to find them.
        base: Settings of all cells.
        rows: Row -> what its cells have in common.
        columns: The columns.
        cells: ``ROW/COLUMN`` -> what is particular to that cell; None where the table has no such cell.
        expected: Row -> column -> the paper's number.
        scales: Scale by name.
        deviations: What differs from the paper, or in the paper from its code, a sentence each.
        search: Settings that ``bpfree tune`` chooses, and among which values.
        remarks: What else a reader must know, such as the explanation of a deviating result.
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
        """What runs it: its name, or the path of a file of one's own, which is told from the current folder alone."""
        folder, here = self.path.resolve().parent, Path.cwd()
        if folder == FOLDER.resolve():
            return f"bpfree table {self.name}"
        inside = folder.is_relative_to(here)
        return f"bpfree table {(folder.relative_to(here) if inside else Path()) / self.path.name}"

    def scale(self, name: str) -> Scale:
        """The scale of this name.

        Raises:
            SettingsError: There is none.
        """
        return self.scales[known(name, self.scales, f"--scale {name}", self.name)]

    @property
    def by_cell(self) -> bool:
        """Whether a row's cells differ in what is run, and not only in what is read of it."""
        return any(column.settings for column in self.columns.values()) or any(self.cells.values())

    def empty(self, row: str, column: str) -> bool:
        """Whether the table has no such cell."""
        return self.cells.get(f"{row}/{column}", {}) is None

    def settings(self, row: str, column: str, scale: Scale) -> dict[str, Any]:
        """A cell's settings: more particular ones go before more general ones, and the scale's before all."""
        own = self.cells.get(f"{row}/{column}") or {}
        return merged(self.base, self.rows[row], self.columns[column].settings, own, scale.settings)


def known(name: Any, valid: Any, where: str, recipe: str) -> Any:
    """``name``, which is one of ``valid``.

    Raises:
        SettingsError: It is not.
    """
    if name not in valid:
        raise SettingsError(f"{recipe}: {where} is not known. {nearest(str(name), list(valid))}")
    return name


def find(name: str) -> Path:
    """The file of a recipe: one of the package's by name, or any by path.

    Raises:
        SettingsError: There is none.
    """
    path = Path(name).expanduser()
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise SettingsError(f"recipe {name}: there is no such file.")
        return path
    if name not in names():
        hint = nearest(name, names()) if names() else ""
        raise SettingsError(f"recipe {name!r} is not known. {hint} One of your own is named by its file, NAME.yaml.")
    return FOLDER / f"{name}.yaml"


def names() -> list[str]:
    """The names of the package's recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        SettingsError: The file is no recipe, or has a key that is not known.
    """
    return _Reader(path.stem, path).recipe(content_of(path))


def content_of(path: Path) -> Any:
    """What a recipe's file says; names of rows and the like are text, be they written as numbers.

    Raises:
        SettingsError: It cannot be read as YAML.
    """
    try:
        return _named(get_loader("yaml")(path.read_text(encoding="utf-8")))
    except Exception as error:  # the loader's errors have no public base
        raise SettingsError(f"{path} cannot be read as YAML ({error}).") from error


def _named(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _named(entry) for name, entry in value.items()}
    return [_named(entry) for entry in value] if isinstance(value, list) else value


class _Reader:
    """Checks names and shapes on the way from plain values to a :class:`Recipe`."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path

    def recipe(self, content: Any) -> Recipe:
        given = self.part(content, "the file", [entry.name for entry in fields(Recipe) if entry.name not in _GIVEN])
        for needed in ("title", "rows", "columns"):
            if not given.get(needed):
                raise SettingsError(f"{self.name}: {needed} is missing.")
        rows = {row: self.set(value, f"rows: {row}") for row, value in self.part(given["rows"], "rows").items()}
        columns = {name: self.column(name, value) for name, value in self.part(given["columns"], "columns").items()}
        return Recipe(
            name=self.name,
            path=self.path,
            title=given["title"],
            source=self.part(given.get("source"), "source"),
            base=self.set(given.get("base"), "base"),
            rows=rows,
            columns=columns,
            cells=self.cells(given.get("cells"), rows, columns),
            expected=self.expected(given.get("expected"), rows, columns),
            scales=self.scales(given.get("scales")),
            deviations=self.sentences(given.get("deviations"), "deviations"),
            search=self.part(given.get("search"), "search"),
            remarks=self.sentences(given.get("remarks"), "remarks"),
            charts=self.charts(given.get("charts"), rows, columns),
        )

    def part(self, value: Any, where: str, valid: Any = None) -> dict[str, Any]:
        """A mapping, whose keys are among ``valid``; nothing is an empty one."""
        if value is not None and not isinstance(value, Mapping):
            raise SettingsError(f"{self.name}: {where} must be names with values, not {value!r}.")
        for key in value or {}:
            if valid is not None:
                known(key, valid, f"{where}: key {key!r}", self.name)
        return dict(value or {})

    def sentences(self, value: Any, where: str) -> list[str]:
        if value is not None and not (isinstance(value, list) and all(isinstance(entry, str) for entry in value)):
            raise SettingsError(f"{self.name}: {where} must be a list of sentences, not {value!r}.")
        return value or []

    def set(self, value: Any, where: str, *others: str) -> dict[str, Any]:
        """Settings of cells, and ``others``."""
        given = self.part(value, where, [*SETTINGS, *others])
        for name in set(CLASSES) & set(given):
            if isinstance(given[name], Mapping):
                # What stands beside these two would be left out without a word.
                self.part(given[name], f"{where}: {name}", ("class_path", "init_args"))
        return given

    def column(self, name: str, value: Any) -> Column:
        given = self.set(value, f"columns: {name}", "metric", "tolerance", "above")
        own = {key: given.pop(key) for key in ("metric", "tolerance", "above") if key in given}
        metric, tolerance = own.get("metric"), own.get("tolerance")
        if not isinstance(metric, str | Mapping | None):
            raise SettingsError(f"{self.name}: columns: {name}: metric must be a name or {{alignment: TAP}}.")
        if not isinstance(tolerance, int | float | None) or isinstance(tolerance, bool):
            raise SettingsError(f"{self.name}: columns: {name}: tolerance must be a number, not {tolerance!r}.")
        return Column(name, **own, settings=given)

    def cells(self, value: Any, rows: Any, columns: Any) -> dict[str, dict[str, Any] | None]:
        valid = [f"{row}/{column}" for row in rows for column in columns]
        given = self.part(value, "cells", valid)
        return {name: None if own is None else self.set(own, f"cells: {name}") for name, own in given.items()}

    def expected(self, value: Any, rows: Any, columns: Any) -> dict[str, dict[str, Expected]]:
        given = self.part(value, "expected", rows)
        return {
            row: {
                name: self.number(number, f"expected: {row}: {name}")
                for name, number in self.part(cells, f"expected: {row}", columns).items()
            }
            for row, cells in given.items()
        }

    def number(self, value: Any, where: str) -> Expected:
        values = value if isinstance(value, list) else [value]
        numbers = [item for item in values if isinstance(item, int | float) and not isinstance(item, bool)]
        if len(numbers) != len(values) or not 1 <= len(values) <= 2:
            raise SettingsError(f"{self.name}: {where} must be a mean, or [mean, standard deviation], not {value!r}.")
        return Expected(*numbers)

    def charts(self, value: Any, rows: Any, columns: Any) -> dict[str, Chart]:
        charts = {}
        for name, own in self.part(value, "charts").items():
            given = self.part(own, f"charts: {name}", [entry.name for entry in fields(Chart)])
            missing = [needed for needed in ("columns", "x", "y") if not given.get(needed)]
            if missing:
                raise SettingsError(f"{self.name}: charts: {name}: {missing[0]} is missing.")
            for column in given["columns"]:
                known(column, columns, f"charts: {name}: column {column!r}", self.name)
            for row in rows:
                self.place(row, f"charts: {name}", log=bool(given.get("log")))
            charts[name] = Chart(**given)
        return charts

    def place(self, row: str, where: str, *, log: bool) -> None:
        """Find out whether a row's name is a number that an axis can show."""
        try:
            shown = not log or float(row) > 0
        except ValueError:
            shown = False
        if not shown:
            kind = "a number above 0" if log else "a number"
            raise SettingsError(f"{self.name}: {where}: rows are places on its axis, and row {row!r} is not {kind}.")

    def scales(self, value: Any) -> dict[str, Scale]:
        given = self.part(value, "scales") or {"full": {}}
        return {name: self.scale(name, own) for name, own in given.items()}

    def scale(self, name: str, value: Any) -> Scale:
        own = self.set(value, f"scales: {name}", "seeds", "cut")
        seeds, cut = own.pop("seeds", 1), own.pop("cut", "")
        if not isinstance(seeds, int) or seeds < 1:
            raise SettingsError(f"{self.name}: scales: {name}: seeds must be a number from 1 on, not {seeds!r}.")
        if name != "full" and not cut:
            raise SettingsError(f"{self.name}: scales: {name}: say under cut what was cut from the full scale.")
        return Scale(name, seeds, cut, own)


_GIVEN = ("name", "path")  # what the file does not say about itself

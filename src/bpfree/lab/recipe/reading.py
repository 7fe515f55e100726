"""Reading recipes: names and shapes are checked on the way from a YAML file to a :class:`Recipe`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from bpfree.lab.disk import yaml_file
from bpfree.lab.errors import SettingsError
from bpfree.lab.recipe.locate import find
from bpfree.lab.recipe.merging import extended
from bpfree.lab.recipe.schema import SETTINGS, Chart, Column, Expected, Recipe, Scale, known
from bpfree.lab.report.style import LIGHT
from bpfree.lab.report.text import is_number
from bpfree.lab.settings.trust import CLASSES, vouched


def read(path: Path, *, trust: bool = True) -> Recipe:
    """Read a recipe.

    Args:
        path: Its file.
        trust: True if it may name code wherever it lies; see :mod:`bpfree.lab.settings.trust`.

    Raises:
        SettingsError: The file is no recipe, or has a key that is not known.
        TrustError: It names code, and nobody has vouched for it.
    """
    return _Reader(path.stem, path).recipe(content_of(path, trust=trust))


def content_of(path: Path, *, trust: bool = True) -> Any:
    """Return the content of a recipe's file, merged over that of the recipe that it extends.

    Args:
        path: The file.
        trust: True if it may name code, whatever its folder.

    Raises:
        TrustError: It names code, and nobody has vouched for it.
        SettingsError: A file cannot be read as YAML, or has a key twice, or one that is no name; or what it extends is
            no recipe.
    """
    return _content(path, (), trust)


def _content(path: Path, below: tuple[Path, ...], trust: bool) -> Any:
    own = yaml_file.read(path)
    vouched(path, own, trust=trust)
    if not isinstance(own, Mapping) or EXTENDS not in own:
        return own
    other, chain = _other(own[EXTENDS], path), (*below, path.resolve())
    if other.resolve() in chain:
        raise SettingsError(f"{path.stem}: {EXTENDS}: {own[EXTENDS]} extends this file, in one step or several.")
    theirs = _content(other, chain, trust)
    _Reader(other.stem, other).recipe(theirs)  # for its mistakes
    return extended(theirs, {name: value for name, value in own.items() if name != EXTENDS})


def _other(name: Any, path: Path) -> Path:
    if not isinstance(name, str):
        raise SettingsError(f"{path.stem}: {EXTENDS} must be the name of a recipe, or of its file, not {name!r}.")
    try:
        return find(name, path.parent)
    except SettingsError as error:
        raise SettingsError(f"{path.stem}: {EXTENDS}: {error}") from error


class _Reader:
    """Checks names and shapes on the way from plain values to a :class:`Recipe`."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path

    def recipe(self, content: Any) -> Recipe:
        given = self.part(content, "the file", _PARTS)
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
            scales=self.scales(given.get("scales"), rows, columns),
            deviations=self.sentences(given.get("deviations"), "deviations"),
            search=self.part(given.get("search"), "search"),
            remarks=self.sentences(given.get("remarks"), "remarks"),
            charts=self.charts(given.get("charts"), rows, columns),
        )

    def part(self, value: Any, where: str, valid: Any = None) -> dict[str, Any]:
        """Check and return a mapping whose keys are among ``valid``; None becomes an empty mapping."""
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
        """Check and return settings of cells, and ``others``."""
        given = self.part(value, where, [*SETTINGS, *others])
        for name in set(CLASSES) & set(given):
            if isinstance(given[name], Mapping):
                # What stands beside these two would be left out without a word.
                self.part(given[name], f"{where}: {name}", ("class_path", "init_args"))
        return given

    def column(self, name: str, value: Any) -> Column:
        given = self.set(value, f"columns: {name}", "metric", "tolerance", "above")
        own: dict[str, Any] = {key: given.pop(key) for key in ("metric", "tolerance", "above") if key in given}
        metric, tolerance = own.get("metric"), own.get("tolerance")
        if not isinstance(metric, str | Mapping | None):
            raise SettingsError(f"{self.name}: columns: {name}: metric must be a name or {{alignment: TAP}}.")
        if tolerance is not None and not (is_number(tolerance) and tolerance >= 0):
            raise SettingsError(
                f"{self.name}: columns: {name}: tolerance must be a number from 0 on, not {tolerance!r}."
            )
        self.flag(own, "above", f"columns: {name}")
        return Column(name, **own, settings=given)

    def flag(self, given: Mapping[str, Any], key: str, where: str) -> None:
        if not isinstance(given.get(key, False), bool):
            raise SettingsError(f"{self.name}: {where}: {key} must be true or false, not {given[key]!r}.")

    def cells(self, value: Any, rows: Any, columns: Any) -> dict[str, dict[str, Any] | None]:
        given = self.part(value, "cells", _cells(rows, columns))
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
        if not all(map(is_number, values)) or not 1 <= len(values) <= 2 or min(values[1:], default=0) < 0:
            raise SettingsError(f"{self.name}: {where} must be a mean, or [mean, standard deviation], not {value!r}.")
        return Expected(*values)

    def charts(self, value: Any, rows: Any, columns: Any) -> dict[str, Chart]:
        charts = {}
        for name, own in self.part(value, "charts").items():
            given = self.part(own, f"charts: {name}", [entry.name for entry in fields(Chart)])
            missing = [needed for needed in ("columns", "x", "y") if not given.get(needed)]
            if missing:
                raise SettingsError(f"{self.name}: charts: {name}: {missing[0]} is missing.")
            self.flag(given, "log", f"charts: {name}")
            if not isinstance(given["columns"], list) or len(given["columns"]) > len(LIGHT):
                raise SettingsError(
                    f"{self.name}: charts: {name}: columns must be a list of {len(LIGHT)} at most, which can be told "
                    "apart; draw more of them in another chart."
                )
            for column in given["columns"]:
                known(column, columns, f"charts: {name}: column {column!r}", self.name)
            for row in rows:
                self.place(row, f"charts: {name}", log=given.get("log", False))
            charts[name] = Chart(**given)
        return charts

    def place(self, row: str, where: str, *, log: bool) -> None:
        """Find out whether a row's name is a number that an axis can show."""
        try:
            number = float(row)
        except ValueError:
            number = math.nan
        if not math.isfinite(number) or (log and number <= 0):
            kind = "a number above 0" if log else "a number"
            raise SettingsError(f"{self.name}: {where}: rows are places on its axis, and row {row!r} is not {kind}.")

    def scales(self, value: Any, rows: Any, columns: Any) -> dict[str, Scale]:
        given = self.part(value, "scales") or {"full": {}}
        return {name: self.scale(name, own, rows, columns) for name, own in given.items()}

    def scale(self, name: str, value: Any, rows: Any, columns: Any) -> Scale:
        parts = {"rows": rows, "columns": columns, "cells": _cells(rows, columns)}
        own = self.set(value, f"scales: {name}", "seeds", "cut", *parts)
        over = {part: self.sets(own.pop(part, None), f"scales: {name}: {part}", valid) for part, valid in parts.items()}
        seeds, cut = own.pop("seeds", 1), own.pop("cut", "")
        if not isinstance(seeds, int) or isinstance(seeds, bool) or seeds < 1:
            raise SettingsError(f"{self.name}: scales: {name}: seeds must be a number from 1 on, not {seeds!r}.")
        if name != "full" and not cut:
            raise SettingsError(f"{self.name}: scales: {name}: say under cut what was cut from the full scale.")
        return Scale(name, seeds, cut, own, **over)

    def sets(self, value: Any, where: str, valid: Any) -> dict[str, dict[str, Any]]:
        """Check and return settings by name."""
        return {name: self.set(own, f"{where}: {name}") for name, own in self.part(value, where, valid).items()}


def _cells(rows: Any, columns: Any) -> list[str]:
    return [f"{row}/{column}" for row in rows for column in columns]


EXTENDS = "extends"
_GIVEN = ("name", "path")  # what the file does not say about itself
_PARTS = [EXTENDS, *(entry.name for entry in fields(Recipe) if entry.name not in _GIVEN)]

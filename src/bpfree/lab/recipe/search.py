"""The values that ``bpfree tune`` chooses among: the ``search`` of a recipe."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from optuna.trial import Trial

from bpfree.lab.errors import SettingsError
from bpfree.lab.recipe.merging import merged
from bpfree.lab.recipe.schema import SETTINGS, Recipe, known
from bpfree.lab.report.text import is_number
from bpfree.lab.settings.trust import CLASSES

_RANGE = ("low", "high", "log", "step")


def check(recipe: Recipe) -> None:
    """Find out whether the search can be understood.

    Raises:
        SettingsError: It is missing, or has a name or a value that means nothing.
    """
    if not recipe.search:
        raise SettingsError(
            f"{recipe.name}: search is missing. Say what to choose among: search: {{lr: [1e-4, 1e-3]}}."
        )
    for name, among in recipe.search.items():
        where = f"search: {name}"
        setting, _, argument = name.partition(".")
        known(setting, SETTINGS, where, recipe.name)
        if bool(argument) != (setting in CLASSES):
            raise SettingsError(f"{recipe.name}: {where}: arguments are named with their class, such as rule.step.")
        if isinstance(among, Mapping):
            for key in among:
                known(key, _RANGE, f"{where}: key {key!r}", recipe.name)
            _check_range(among, f"{recipe.name}: {where}")
        elif not isinstance(among, list) or not among:
            raise SettingsError(
                f"{recipe.name}: {where} must be a list of values, or {{low: .., high: .., log: true}}."
            )


def _check_range(among: Mapping[str, Any], where: str) -> None:
    if not {"low", "high"} <= set(among):
        raise SettingsError(f"{where}: a range needs low and high.")
    low, high, log = among["low"], among["high"], among.get("log", False)
    if not isinstance(log, bool):
        raise SettingsError(f"{where}: log must be true or false, not {log!r}.")
    if not (is_number(low) and is_number(high)) or low > high or (log and low <= 0):
        raise SettingsError(f"{where}: low and high must be numbers in this order, above 0 with log: true.")
    if "step" not in among:
        return
    step, whole = among["step"], isinstance(low, int) and isinstance(high, int)
    if log:
        raise SettingsError(f"{where}: step has no meaning with log: true; leave one of them out.")
    if not is_number(step) or step <= 0 or (whole and not isinstance(step, int)):
        raise SettingsError(f"{where}: step must be a number above 0, a whole one between whole ones, not {step!r}.")


def settings(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return chosen values by name, ``rule.step`` and the like, as settings of a cell."""
    layers = []
    for name, value in chosen.items():
        setting, _, argument = name.partition(".")
        layers.append({setting: {"init_args": {argument: value}} if argument else value})
    return merged(*layers)


def first(searched: Mapping[str, Any]) -> dict[str, Any]:
    """Return one value of each searched setting."""
    return {name: among["low"] if isinstance(among, Mapping) else among[0] for name, among in searched.items()}


def grid(searched: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every combination.

    Raises:
        SettingsError: A range has no end of values.
    """
    for name, among in searched.items():
        if isinstance(among, Mapping):
            raise SettingsError(f"search: {name}: a grid needs a list; ranges are for --sampler tpe.")
    return [dict(zip(searched, values, strict=True)) for values in itertools.product(*searched.values())]


def suggested(searched: Mapping[str, Any], trial: Trial) -> dict[str, Any]:
    """Return the values that Optuna suggests for one try."""
    return {name: _suggested(name, among, trial) for name, among in searched.items()}


def _suggested(name: str, among: Any, trial: Trial) -> Any:
    if not isinstance(among, Mapping):
        return trial.suggest_categorical(name, among)
    options = {key: value for key, value in among.items() if key not in ("low", "high")}
    if all(isinstance(among[end], int) for end in ("low", "high")):
        return trial.suggest_int(name, among["low"], among["high"], **options)
    return trial.suggest_float(name, among["low"], among["high"], **options)

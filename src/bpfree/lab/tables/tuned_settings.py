"""The subjects of tuning, and the searched settings that each row takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import bpfree
from bpfree.errors import nearest
from bpfree.lab.errors import SettingsError
from bpfree.lab.options.training import TrainOptions
from bpfree.lab.recipe import search
from bpfree.lab.recipe.merging import merged
from bpfree.lab.recipe.schema import Recipe, Scale
from bpfree.lab.settings import PRESETS
from bpfree.lab.settings.signatures import FROM_DATA, arguments
from bpfree.lab.tables.cells import chosen_cells
from bpfree.lab.tables.command_options import TuneOptions
from bpfree.lab.tables.work import Training, imported
from bpfree.lab.tables.work import works as of_settings
from bpfree.lab.tasks import TASKS, task_of
from bpfree.lab.tasks.task import Metric

_ROWS = "Make the values rows of a table: {}"
_CHOSEN_ELSEWHERE = {
    "nodes": _ROWS.format("metric best_validation_accuracy says how well the validation nodes did."),
    "edges": _ROWS.format("metric validation_auc says how well the validation edges did."),
}
"""Advice for data without images to hold out and without a validation file, by the kind of its samples."""
_MEASURED_ON_VALIDATION: dict[str, dict[str, Any]] = {
    "tokens": {},
    "rows": {"clicks": {"measured_on": "validation"}},
    "views": {"scene": {"measured_on": "validation"}},
}
"""Data with a part for validation of its own: the settings that measure on it, by the kind of its samples."""


@dataclass(frozen=True)
class Subject:
    """A row, or a cell if columns have settings of their own: settings are chosen for it.

    Attributes:
        place: The part of a recipe that keeps its settings, ``rows`` or ``cells``.
        name: Its name there.
        settings: Its settings before.
        search: The settings to choose, and their values: the part of the recipe's search that this row takes.
        validation: Training images that are held out; text, logs of clicks and scenes have a part of their own.
        data_dir: The folder of the data.
    """

    place: str
    name: str
    settings: dict[str, Any]
    search: dict[str, Any]
    validation: int
    data_dir: str | None

    def work(self, chosen: Mapping[str, Any]) -> Training:
        """Return a run with chosen values, measured on validation data."""
        held_out = _MEASURED_ON_VALIDATION.get(self.samples, {"validation": self.validation})
        return _training(self.name, merged(self.settings, search.settings(chosen), held_out), self.data_dir)

    @property
    def samples(self) -> str:
        """The noun for the samples of its data."""
        return _samples(self.settings)

    @property
    def first(self) -> Training:
        """A run with some values that the search allows."""
        return self.work(search.first(self.search))

    @property
    def metric(self) -> Metric:
        """The metric by which settings are chosen."""
        return TASKS[self.first.settings.task].metric

    @property
    def higher(self) -> bool:
        """True if a higher score is better."""
        return self.metric.better == "higher"


def subjects(recipe: Recipe, options: TuneOptions) -> list[Subject]:
    """Return the subjects of tuning; rows that take none of the searched settings are left out.

    Raises:
        SettingsError: A searched name fits no row, or would have no effect; or there is nothing to tune, or no data to
            tune it on.
    """
    scale = recipe.scale(options.scale)
    tuned = _settings(recipe, scale, options.cell or ())
    for settings in tuned.values():
        _check_data(recipe, settings)
    _check_fit(recipe, scale)
    found = []
    for name, settings in tuned.items():
        run = _training(name, settings)
        own = {key: among for key, among in recipe.search.items() if _takes(run, key)}
        _check_scale(recipe, scale, settings, own)
        if own:
            place = "cells" if recipe.by_cell else "rows"
            found.append(Subject(place, name, settings, own, options.validation, options.data_dir))
    if not found:
        raise SettingsError(f"{recipe.name}: no row of --cell takes what is searched: {', '.join(recipe.search)}.")
    return found


def _settings(recipe: Recipe, scale: Scale, chosen: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the settings of rows, or of cells where columns have settings of their own, by name."""
    found: dict[str, dict[str, Any]] = {}
    for row, column in chosen_cells(recipe, chosen):
        name = f"{row}/{column.name}" if recipe.by_cell else row
        found.setdefault(name, recipe.settings(row, column.name, scale))
    return found


def _training(name: str, settings: Mapping[str, Any], data_dir: str | None = None) -> Training:
    found = of_settings(name, settings, 1, data_dir)[0]
    if not isinstance(found, Training):
        raise SettingsError(f"{name} is computed by a function; there is nothing to tune.")
    return found


def _check_fit(recipe: Recipe, scale: Scale) -> None:
    """Find out whether every searched name fits some row, be it one that is not tuned now."""
    every = _settings(recipe, scale, ())
    runs = [_training(name, settings) for name, settings in every.items() if "function" not in settings]
    for name in recipe.search:
        if runs and not any(_takes(run, name) for run in runs):
            hint = nearest(name, dict.fromkeys(argument for run in runs for argument in _arguments(run)))
            raise SettingsError(f"{recipe.name}: search: {name} is an argument of no row's class. {hint}")


def _samples(settings: Mapping[str, Any]) -> str:
    return task_of(settings.get("data", TrainOptions.data)).samples


def _check_data(recipe: Recipe, settings: Mapping[str, Any]) -> None:
    data = settings.get("data", TrainOptions.data)
    samples = _samples(settings)
    if samples == "tokens" and (settings.get("text") or {}).get("measured_on") == "test":
        raise SettingsError(
            f"{recipe.name}: text.measured_on: test would choose settings on the test file. Leave it out for tuning."
        )
    if samples == "views" and data != "blender":
        raise SettingsError(
            f"{recipe.name}: settings are chosen on views for validation, and scenes of {data} have views for the test "
            "alone. Tune on a scene of blender: --cell chooses rows."
        )
    if samples in _CHOSEN_ELSEWHERE:
        raise SettingsError(
            f"{recipe.name}: settings are chosen on held-out training images, and {data} has none. "
            f"{_CHOSEN_ELSEWHERE[samples]}"
        )


def _check_scale(recipe: Recipe, scale: Scale, settings: Mapping[str, Any], searched: Iterable[str]) -> None:
    """Refuse what would be chosen and written, and then overruled when the new recipe runs at this scale."""
    for name in searched:
        chosen = merged(settings, search.settings({name: _ANYTHING}))
        if merged(chosen, scale.settings) != chosen:
            raise SettingsError(
                f"{recipe.name}: search: {name} is set by scale {scale.name}, which goes before what is chosen. Leave "
                "it out there, or tune at another scale."
            )


_ANYTHING = object()  # equal to no value that a scale sets


def _takes(run: Training, name: str) -> bool:
    """Return whether a searched name is a setting that all runs have, or an argument of one of this run's classes."""
    setting, _, argument = name.partition(".")
    kind = _classes(run).get(setting)
    return not argument or (kind is not None and _has(kind, argument))


def _has(kind: type, argument: str) -> bool:
    taken = arguments(kind)
    return taken.more or argument.partition(".")[0] in taken.names  # feedback, of feedback.shared and the like


def _classes(run: Training) -> dict[str, type]:
    """Return the classes of a run whose arguments can be chosen, by setting."""
    of_rule = run.settings.rule
    found = {"rule": type(of_rule.rule), "model": imported(run.settings.model["class_path"])}
    if run.options.rule in PRESETS and run.options.rule not in bpfree.RULES:
        del found["rule"]  # a name for a rule with certain arguments, which takes no others
    return found | ({} if of_rule.within is None else {"within": type(of_rule.within)})


def _arguments(run: Training) -> list[str]:
    """Return the arguments of a run's classes that can be searched."""
    return [
        f"{setting}.{argument}"
        for setting, kind in _classes(run).items()
        for argument in arguments(kind).names
        if argument not in FROM_DATA
    ]

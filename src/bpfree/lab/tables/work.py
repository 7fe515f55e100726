"""One run or measurement, which several cells of a table may read."""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib
import inspect
import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, Namespace

import bpfree
from bpfree.errors import nearest
from bpfree.lab.display.terminal import Display
from bpfree.lab.errors import RunError, SettingsError
from bpfree.lab.options.parser import Parser, add_option, add_options, read_options
from bpfree.lab.options.training import TrainOptions
from bpfree.lab.queue.work_protocol import Work
from bpfree.lab.running.loggers import USUAL
from bpfree.lab.settings import PRESETS, RuleOverrides, RunSettings
from bpfree.lab.settings.argument_errors import in_one_line
from bpfree.lab.settings.identity import own_code, own_codes, without_places
from bpfree.lab.settings.model import with_import_path
from bpfree.lab.settings.plain_values import default, import_path, plain
from bpfree.lab.tables import run_data
from bpfree.lab.tasks import TASKS


@dataclass(frozen=True)
class Training:
    """One rule, one seed.

    Attributes:
        label: Its name while it runs.
        seed: The seed.
        options: The options of the run, as for ``bpfree train``.
        settings: The same with all defaults filled in.
        checksums: The checksums of the files, if the name of the data does not determine them.
    """

    label: str
    seed: int
    options: TrainOptions
    settings: RunSettings
    checksums: Mapping[str, str] | None = None

    @property
    def metric(self) -> str:
        """The name of its task's metric."""
        return TASKS[self.settings.task].metric.name

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of other numbers that its task measures."""
        return TASKS[self.settings.task].measures

    @functools.cached_property
    def key(self) -> str:
        """A hash of what differs from the defaults, so that an option which is added later changes no key."""
        files = {} if self.checksums is None else {"checksums": self.checksums}
        run = self.settings
        return _hash(
            {
                "data": {"name": self.options.data, **_read(self.options), **files},
                "model": _differing_model(without_places(run.model)),
                "rule": _asked(run.rule),
                "run": _differing(run, [entry.name for entry in fields(run) if entry.name not in _TOLD]),
                "seed": self.seed,
                "code": own_codes(run.rule.rule, run.rule.within, run.model),
            }
        )

    def perform(self, folder: Path, data_dir: str | None, display: Display, logger: str = USUAL) -> dict[str, Any]:
        """Train, or continue from the last checkpoint that another process has left in ``folder``."""
        # Importing what trains takes seconds, which a table that is complete does not need.
        from bpfree.lab.running.runs import run

        record = run(self.settings, self.data(data_dir), folder, display=display, logger=logger)
        display.finish(self.settings, record, known=False)
        # One seed is seen for all.
        left_out = set() if self.settings.details and self.seed == 0 else _PICTURES
        return {name: value for name, value in record.items() if name not in left_out}

    def data(self, data_dir: str | None) -> Any:
        """Return the data for training and evaluation."""
        return run_data.loaded(self.options.data, data_dir, self.options.reading)


_TOLD = {"label", "seed", "rule", "model"}  # of a run's settings: those that are told elsewhere in its key
_PICTURES = {"filters", "filters_shape", "embedding", "views"}  # too large for a record of which there are hundreds


@dataclass(frozen=True)
class Measurement:
    """Numbers that a function computes, with or without a seed.

    Attributes:
        label: Its name while it runs.
        seed: The seed; given to the function if it takes one.
        function: Import path. It returns numbers by name. If it has an argument ``data_dir``, it gets the folder of the
            data.
        arguments: Its other arguments.
    """

    label: str
    seed: int
    function: str
    arguments: dict[str, Any]

    @property
    def metric(self) -> None:
        """None: a column of computed numbers names its metric."""

    measures: tuple[str, ...] = ()

    @functools.cached_property
    def key(self) -> str:
        """A hash of function and arguments."""
        asked = {"function": self.function, "arguments": self.arguments, "seed": self.seed}
        return _hash(asked | {"code": own_code(self.function.rpartition(".")[0])})

    def perform(self, folder: Path, data_dir: str | None, display: Display, logger: str = USUAL) -> dict[str, Any]:
        """Call the function.

        Raises:
            RunError: It returns something else than numbers by name.
        """
        function = imported(self.function)
        known = {"seed": self.seed, "data_dir": data_dir}
        taken = inspect.signature(function).parameters
        values = function(**self.arguments, **{name: value for name, value in known.items() if name in taken})
        return {"label": self.label, "seed": self.seed, "values": self._numbers(values), "settings": self.arguments}

    def _numbers(self, returned: Any) -> dict[str, float]:
        if not isinstance(returned, Mapping):
            raise RunError(f"{self.function} returns {returned!r}; let it return numbers by name, {{name: number}}.")
        found = {}
        for name, value in returned.items():
            try:
                found[str(name)] = float(value)
            except (TypeError, ValueError, RuntimeError) as error:  # the last is torch's, of several numbers
                raise RunError(f"{self.function} returns as {name!r} no number, but {value!r}.") from error
        return found


def imported(path: str) -> Any:
    """Return the function of this import path.

    Raises:
        SettingsError: There is none.
    """
    module, _, name = path.rpartition(".")
    try:
        found = importlib.import_module(module)
    except (ImportError, ValueError) as error:
        raise SettingsError(f"function {path}: its module cannot be imported ({error}).") from error
    if not callable(getattr(found, name, None)):
        raise SettingsError(f"function {path}: {module} has no such function. {nearest(name, dir(found))}")
    return getattr(found, name)


def works(label: str, settings: Mapping[str, Any], seeds: int, data_dir: str | None = None) -> tuple[Work, ...]:
    """Return the runs or the measurement of these settings, those of a cell in a recipe, one a seed.

    A measurement that takes no seed is one, however many seeds there are.

    Args:
        label: Their label.
        settings: The settings.
        seeds: The number of seeds.
        data_dir: The folder of the data, by whose files runs on data of any folder are told apart.

    Raises:
        SettingsError: A name or a value means nothing.
        DataError: A folder of one's own cannot be read.
    """
    if "function" in settings:
        return _measurements(label, settings, seeds)
    options, run = _resolved(label, json.dumps(settings, sort_keys=True))
    files = run_data.of_folder(options.data, data_dir, options.reading)
    return tuple(Training(label, seed, options, replace(run, seed=seed), files) for seed in range(seeds))


def of_records(label: str, settings: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]]) -> tuple[Work, ...]:
    """Return the runs of these settings that have a record, seed by seed, on whatever files they were.

    Args:
        label: Their label.
        settings: The settings, of a run on data of any folder.
        records: Records by key.

    Raises:
        SettingsError: A name or a value means nothing.
    """
    options, run = _resolved(label, json.dumps(settings, sort_keys=True))
    found = []
    for key, record in records.items():
        if "data" in record:
            seed, files = record["seed"], run_data.of_record(record["data"])
            work = Training(label, seed, options, replace(run, seed=seed), files)
            found += [work] if work.key == key else []  # it is of these settings, and not of others on the same files
    return tuple(sorted(found, key=lambda work: work.seed))


def _measurements(label: str, settings: Mapping[str, Any], seeds: int) -> tuple[Measurement, ...]:
    others = sorted(set(settings) - {"function", "arguments"})
    if others:
        raise SettingsError(f"{label}: {others[0]} has no meaning beside a function; give it as an argument.")
    function, arguments = settings["function"], dict(settings.get("arguments") or {})
    parameters = inspect.signature(imported(function)).parameters
    taken = [name for name, entry in parameters.items() if entry.kind not in (entry.VAR_POSITIONAL, entry.VAR_KEYWORD)]
    for name in arguments:
        if name not in taken and not any(entry.kind is entry.VAR_KEYWORD for entry in parameters.values()):
            raise SettingsError(f"{label}: {function} has no argument {name!r}. {nearest(name, taken)}")
    return tuple(Measurement(label, seed, function, arguments) for seed in range(seeds if "seed" in taken else 1))


@functools.cache
def _resolved(label: str, text: str) -> tuple[TrainOptions, RunSettings]:
    """Return a cell's settings as JSON, with all defaults and seed 0."""
    settings = json.loads(text)
    details = settings.pop("details", False)
    options = _train_options(label, settings)
    return options, replace(options.run(options.rule, 0, details=details), label=label)


def _train_options(label: str, settings: Mapping[str, Any]) -> TrainOptions:
    """Return a cell's settings as the options of ``bpfree train``."""
    general = {entry.name for entry in fields(TrainOptions)} - {"rule"}
    overrides = {entry.name for entry in fields(RuleOverrides)} - {"rule"}
    given: dict[str, Any] = {"threads": 1}  # not the machine's choice: sums differ in their last bits
    given |= {name: value for name, value in settings.items() if name in general - overrides}
    rule, own = _rule(settings.get("rule"))
    own |= {name: value for name, value in settings.items() if name in overrides}
    given["rule"] = rule
    if "model" in given:
        given["model"] = with_import_path(given["model"])
    given["settings"] = {rule: own}
    try:
        found = copy.deepcopy(_unchanged())
        for name, value in given.items():
            found[name] = copy.deepcopy(_option(name, json.dumps(value, sort_keys=True)))
        return read_options(_parser(), found, TrainOptions)
    except ArgumentError as error:
        raise SettingsError(f"{label}: {in_one_line(str(error), 'settings')}") from error


@functools.cache
def _unchanged() -> Namespace:
    """Return all options as they are where nothing is given."""
    return _parser().parse_object({})


@functools.cache
def _option(name: str, text: str) -> Any:
    """Return an option's value, given as JSON, as the parser reads it: slowly, and few of a table's cells differ."""
    parser = Parser(exit_on_error=False)
    add_option(parser, TrainOptions, name)
    return parser.parse_object({name: json.loads(text)})[name]


def _rule(given: Any) -> tuple[str, dict[str, Any]]:
    """Return the label whose preset is the beginning, and the rule itself if it is not the preset's."""
    if not isinstance(given, Mapping):
        return given or TrainOptions.rule, {}
    if "class_path" not in given:  # arguments alone, of what is the default
        given = {"class_path": TrainOptions.rule, **given}
    name = given["class_path"]
    if not given.get("init_args") and (name in PRESETS or name in bpfree.RULES):
        return name, {}
    return name.rpartition(".")[2], {"rule": dict(given)}


@functools.cache
def _parser() -> Parser:
    parser = Parser(exit_on_error=False)
    add_options(parser, TrainOptions)
    return parser


def _read(options: TrainOptions) -> dict[str, Any]:
    """Return how data are read where it differs from the defaults.

    A schema and a scene are known by their checksums, wherever they lie.
    """
    found = _differing(replace(options, scene=replace(options.scene, folder=None)), options.reading)
    if "clicks" in found:
        found["clicks"].pop("schema", None)
    return found


def _asked(value: Any) -> Any:
    """Return a value for JSON; a dataclass gives its class and the fields that differ from their defaults."""
    if not is_dataclass(value) or isinstance(value, type):
        return plain(value)
    return {"class": import_path(type(value)), **_differing(value, [entry.name for entry in fields(value)])}


def _differing(settings: Any, names: Iterable[str]) -> dict[str, Any]:
    """Return those fields of a dataclass, among ``names``, that differ from their defaults."""
    usual = {entry.name: default(entry) for entry in fields(settings) if entry.init}
    found = {name: getattr(settings, name) for name in names if name in usual}
    return {name: _asked(value) for name, value in found.items() if value != usual[name]}


def _differing_model(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model and the arguments that differ from their defaults."""
    usual = _defaults(model["class_path"])
    given = {name: value for name, value in model["init_args"].items() if plain(value) != usual.get(name, MISSING)}
    return {"class_path": model["class_path"], "init_args": given}


@functools.cache
def _defaults(class_path: str) -> dict[str, Any]:
    parameters = inspect.signature(imported(class_path)).parameters.values()
    return {entry.name: plain(entry.default) for entry in parameters if entry.default is not entry.empty}


def _hash(asked: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain(asked), sort_keys=True).encode()).hexdigest()[:16]

"""``bpfree tune``: settings for each rule, chosen on a validation split with equal budgets."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from bpfree.errors import BpfreeWarning
from bpfree.lab.disk.checksums import checksum
from bpfree.lab.disk.files import write_text
from bpfree.lab.disk.leftovers import sweep
from bpfree.lab.display.terminal import Display
from bpfree.lab.errors import RunError, SettingsError
from bpfree.lab.process import environment
from bpfree.lab.queue.ledger import Ledger
from bpfree.lab.queue.storage import open_storage, patient, persistent
from bpfree.lab.recipe import search
from bpfree.lab.recipe.merging import merged
from bpfree.lab.recipe.reading import content_of
from bpfree.lab.recipe.schema import Recipe
from bpfree.lab.settings.plain_values import plain
from bpfree.lab.tables.command_options import TuneOptions
from bpfree.lab.tables.provenance import code, source
from bpfree.lab.tables.result import cautions
from bpfree.lab.tables.tuned_settings import Subject, subjects
from bpfree.lab.tables.workers import Order, work_on

_TRIALS = 20  # of tpe, unless told otherwise
_WRONG = "wrong"  # why a try failed; one whose worker died has none, and is no try
_MADE = "made"  # with which code, on which machine and data
_CHECKSUM = "checksum"  # of values and score


@dataclass(frozen=True)
class Try:
    """Values that were tried.

    Attributes:
        chosen: The values by name.
        score: The metric that they reached on held-out data; None if the run failed.
        wrong: Why it failed.
        made: The code, the machine and the data of a run that did not, as in its record.
    """

    chosen: dict[str, Any]
    score: float | None
    wrong: str | None
    made: dict[str, Any] | None


class _FailedError(Exception):
    """A try failed, and has counted."""


def tune(options: TuneOptions, console: Console | None = None) -> Path:
    """Search, and write a recipe with the best settings of every rule.

    The same command continues an interrupted search, and several processes with one ledger share it.

    Args:
        options: The recipe, and the options of the search.
        console: Where progress is shown; None shows nothing.

    Returns:
        The new recipe's path.

    Raises:
        SettingsError: The recipe has no search, or one that means nothing, or no image can be held out.
        DataError: The data cannot be read.
        RunError: No try of some subject succeeded.
        LedgerError: The ledger's database does not answer.
    """
    recipe = options.recipe()
    search.check(recipe)
    if options.validation < 1:
        raise SettingsError(
            f"--validation {options.validation}: settings are chosen on held-out data, at least one image."
        )
    if options.trials is not None and options.trials < 1:
        raise SettingsError(f"--trials {options.trials} must be at least 1.")
    found = subjects(recipe, options)
    order = options.order(recipe)
    sweep(order.scratch, below=True)
    tries = (_grid if options.sampler == "grid" else _tpe)(recipe, order, found, options, console)
    best = {subject.name: _best(subject, tries[subject.name]) for subject in found}
    path = Path(options.to or f"{recipe.name}-tuned.yaml")
    write_text(path, _written(recipe, found, best, tries, options))
    if console is not None:
        _show(console, found, best, tries, path)
    return path


def _grid(
    recipe: Recipe, order: Order, found: Sequence[Subject], options: TuneOptions, console: Console | None
) -> dict[str, list[Try]]:
    """Try every combination, through the ledger like the runs of a table."""
    combinations = {subject.name: search.grid(subject.search) for subject in found}
    counts = {name: len(each) for name, each in combinations.items()}
    if options.trials is not None and set(counts.values()) != {options.trials}:
        raise SettingsError(f"--trials {options.trials}: a grid tries all combinations, {counts}; leave it out.")
    planned = {subject.name: [subject.work(chosen) for chosen in combinations[subject.name]] for subject in found}
    works = [work for each in planned.values() for work in each]
    ledger = Ledger(options.ledger, f"{recipe.name} (tuning)")
    ledger.ask(works, again=True)
    with Display(console, runs=len(works), measured_on="validation") as display:
        work_on(order, works, ledger, display)
    state = ledger.state(works)
    return {
        name: [
            Try(chosen, state.records.get(key, {}).get("value"), state.wrong.get(key), state.records.get(key))
            for chosen, key in zip(combinations[name], (work.key for work in each), strict=True)
        ]
        for name, each in planned.items()
    }


def _tpe(
    recipe: Recipe, order: Order, found: Sequence[Subject], options: TuneOptions, console: Console | None
) -> dict[str, list[Try]]:
    """Try what Optuna's tree-structured Parzen estimator suggests after the earlier tries, in one study per subject."""
    storage, wanted = open_storage(options.ledger), options.trials or _TRIALS
    folder, tries = order.folder(), {}
    with Display(console, runs=len(found) * wanted, measured_on="validation") as display:
        for subject in found:
            study = patient(optuna.create_study)(
                storage=storage,
                study_name=f"tune {recipe.name}: {subject.name}, {options.scale}, {_hash(subject)}",
                direction="maximize" if subject.higher else "minimize",
                load_if_exists=True,
            )
            objective = functools.partial(_score, subject=subject, folder=folder, display=display)
            while len(ended := _ended(study)) < wanted:
                study.sampler = optuna.samplers.TPESampler(seed=_draws(study))
                persistent(study.optimize)(objective, n_trials=1, catch=(_FailedError,))
            tries[subject.name] = [
                Try(trial.params, trial.value, trial.user_attrs.get(_WRONG), trial.user_attrs.get(_MADE))
                for trial in ended[:wanted]
            ]
    return tries


def _hash(subject: Subject) -> str:
    """Return a hash of everything that its tries share, the user's code included, and of the searched values."""
    asked = json.dumps([subject.first.key, plain(subject.search)], sort_keys=True)
    return hashlib.sha256(asked.encode()).hexdigest()[:16]


def _score(trial: optuna.Trial, subject: Subject, folder: Path, display: Display) -> float:
    work = subject.work(search.suggested(subject.search, trial))
    work.data(subject.data_dir)  # without data there is no try
    try:
        record = work.perform(folder, subject.data_dir, display)
    except Exception as error:  # whatever goes wrong, be it that training diverged, has been tried, as in a grid
        trial.set_user_attr(_WRONG, f"{type(error).__name__}: {error}")
        raise _FailedError from error
    made = {"code": code(), "environment": record.get("environment") or environment.describe()}
    trial.set_user_attr(_MADE, made | ({"data": record["data"]} if "data" in record else {}))
    score = record[work.metric]
    if score is None or not math.isfinite(score):
        trial.set_user_attr(_WRONG, f"its {work.metric} is not finite; the run has diverged.")
        raise _FailedError
    trial.set_user_attr(_CHECKSUM, checksum([trial.params, float(score)]))
    return score


@patient
def _ended(study: optuna.Study) -> list[FrozenTrial]:
    """Return the tries that count: those of dead workers do not."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
    return [trial for trial in trials if _is_whole(trial) or _WRONG in trial.user_attrs]


def _is_whole(trial: FrozenTrial) -> bool:
    """Return whether a finished try is undamaged; a damaged one is reported, and another takes its place."""
    if trial.state != TrialState.COMPLETE:
        return False
    # Tries of before there were checksums have none.
    whole = trial.user_attrs.get(_CHECKSUM) in (None, checksum([trial.params, trial.value]))
    if not whole:
        said = f"try {trial.number} of {trial.params} is damaged in the ledger, and does not count."
        warnings.warn(said, BpfreeWarning, 2)
    return whole


@patient
def _draws(study: optuna.Study) -> int:
    """Return a seed for the next try: with the seed of another try, it would repeat that try's values."""
    return len(study.get_trials(deepcopy=False))


def _best(subject: Subject, tries: Sequence[Try]) -> Try:
    """Return the best of a subject's tries; the first of several.

    Raises:
        RunError: None succeeded.
    """
    scored = [one for one in tries if one.score is not None]
    if not scored:
        reasons = "\n".join(dict.fromkeys(one.wrong for one in tries if one.wrong))
        raise RunError(
            f"{subject.name}: none of {len(tries)} tries succeeded. Mend what is wrong, or search among other values.\n"
            f"{reasons}"
        )
    better = 1 if subject.higher else -1
    return max(scored, key=lambda one: better * (one.score or 0.0))


def _show(
    console: Console,
    found: Sequence[Subject],
    best: Mapping[str, Try],
    tries: Mapping[str, Sequence[Try]],
    path: Path,
) -> None:
    for subject in found:
        one = best[subject.name]
        console.print(f"{subject.name}: {one.chosen}, validation {subject.metric.show(one.score)}")
    made = [one.made for each in tries.values() for one in each if one.made is not None]
    for line in cautions(made, source(), "another --ledger begins anew"):
        console.print(line, soft_wrap=True)
    console.print(f"recipe: {path}", soft_wrap=True)


def _written(
    recipe: Recipe,
    found: Sequence[Subject],
    best: Mapping[str, Try],
    tries: Mapping[str, Sequence[Try]],
    options: TuneOptions,
) -> str:
    """Return the recipe with what was chosen, as YAML."""
    content = content_of(recipe.path)
    for subject in found:
        place = dict(content.get(subject.place) or {})
        place[subject.name] = merged(place.get(subject.name) or {}, search.settings(best[subject.name].chosen))
        content[subject.place] = place
    searched = content.pop("search")
    content["remarks"] = [
        *recipe.remarks,
        f"Chosen by {options.sampler} at scale {options.scale} on {_measured_on(found, options)}, one seed, among "
        f"{searched}: {_counts(found, tries)}.",
    ]
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)


def _measured_on(found: Sequence[Subject], options: TuneOptions) -> str:
    """Return, in words, the data on which settings were chosen."""
    words = {"tokens": "the validation file", "rows": "the validation rows", "views": "the validation views"}
    images = f"{options.validation} held-out training images"
    return " and ".join(dict.fromkeys(words.get(subject.samples, images) for subject in found))


def _counts(found: Sequence[Subject], tries: Mapping[str, Sequence[Try]]) -> str:
    """Return, in words, how many tries of which settings the subjects had."""
    groups: dict[str, list[str]] = {}
    for subject in found:
        what = f"{len(tries[subject.name])} tries of {' and '.join(subject.search)}"
        groups.setdefault(what, []).append(subject.name)
    return "; ".join(f"{what} for each of {', '.join(names)}" for what, names in groups.items())

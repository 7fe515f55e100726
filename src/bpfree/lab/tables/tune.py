"""``bpfree tune``: settings for each rule, chosen on a validation split with equal budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from bpfree.errors import BpfreeError
from bpfree.lab.errors import RunError, SettingsError
from bpfree.lab.files import write_text
from bpfree.lab.tables import search
from bpfree.lab.tables.inherit import merged
from bpfree.lab.tables.ledger import Ledger
from bpfree.lab.tables.options import TuneOptions
from bpfree.lab.tables.plan import chosen_cells
from bpfree.lab.tables.reading import content_of
from bpfree.lab.tables.recipe import Recipe
from bpfree.lab.tables.storage import open_storage
from bpfree.lab.tables.work import Training
from bpfree.lab.tables.work import works as of_settings
from bpfree.lab.tables.workers import work_on
from bpfree.lab.tasks import TASKS
from bpfree.lab.terminal import Display

_TRIALS = 20  # of tpe, unless told otherwise
_WRONG = "wrong"  # why a try failed; one whose worker died has none, and is no try


@dataclass(frozen=True)
class Subject:
    """What settings are chosen for: a row, or a cell where columns have settings of their own.

    Attributes:
        place: Where a recipe keeps its settings, ``rows`` or ``cells``.
        name: Its name there.
        settings: What it is set to before.
    """

    place: str
    name: str
    settings: dict[str, Any]

    def work(self, chosen: Mapping[str, Any], validation: int) -> Training:
        """A run with chosen values, measured on held-out training data."""
        (found,) = of_settings(self.name, merged(self.settings, search.settings(chosen), {"validation": validation}), 1)
        if not isinstance(found, Training):
            raise SettingsError(f"{self.name} is computed by a function; there is nothing to tune.")
        return found


@dataclass(frozen=True)
class Try:
    """Values that were tried, and how well they did on held-out data; no score if the run failed."""

    chosen: dict[str, Any]
    score: float | None


def tune(options: TuneOptions, console: Console | None = None) -> Path:
    """Search, and write a recipe with the best settings of every rule.

    The same command continues an interrupted search, and several processes with one ledger share it.

    Args:
        options: Which recipe, and how it is searched.
        console: Where progress is shown; None shows nothing.

    Returns:
        The new recipe's path.

    Raises:
        SettingsError: The recipe has no search, or one that means nothing.
        RunError: No try of some subject succeeded.
    """
    recipe = options.recipe()
    search.check(recipe)
    if options.validation < 1:
        raise SettingsError(
            f"--validation {options.validation}: settings are chosen on held-out data, at least one image."
        )
    found = subjects(recipe, options)
    tries = (_grid if options.sampler == "grid" else _tpe)(recipe, found, options, console)
    best = {subject.name: _best(subject, tries[subject.name], options) for subject in found}
    path = Path(options.to or f"{recipe.name}-tuned.yaml")
    write_text(path, _written(recipe, found, best, options, len(next(iter(tries.values())))))
    if console is not None:
        for name, one in best.items():
            console.print(f"{name}: {one.chosen}, validation {one.score:.2f}")
        console.print(f"recipe: {path}", soft_wrap=True)
    return path


def subjects(recipe: Recipe, options: TuneOptions) -> list[Subject]:
    """What settings are chosen for."""
    scale = recipe.scale(options.scale)
    found: dict[str, Subject] = {}
    for row, column in chosen_cells(recipe, options.cell or ()):
        name = f"{row}/{column.name}" if recipe.by_cell else row
        settings = recipe.settings(row, column.name, scale)
        found.setdefault(name, Subject("cells" if recipe.by_cell else "rows", name, settings))
    return list(found.values())


def _grid(
    recipe: Recipe, found: Sequence[Subject], options: TuneOptions, console: Console | None
) -> dict[str, list[Try]]:
    """Every combination, through the ledger as the runs of a table are."""
    combinations = list(search.grid(recipe))
    if options.trials not in (None, len(combinations)):
        raise SettingsError(f"--trials {options.trials}: the grid has {len(combinations)} combinations.")
    planned = {subject.name: [subject.work(chosen, options.validation) for chosen in combinations] for subject in found}
    works = [work for each in planned.values() for work in each]
    ledger = Ledger(options.ledger, f"{recipe.name} (tuning)")
    ledger.ask(works, again=True)
    with Display(console, runs=len(works), measured_on="validation") as display:
        work_on(options.order(), works, ledger, display)
    records = ledger.state(works).records
    return {
        name: [
            Try(chosen, records.get(work.key, {}).get("value")) for chosen, work in zip(combinations, each, strict=True)
        ]
        for name, each in planned.items()
    }


def _tpe(
    recipe: Recipe, found: Sequence[Subject], options: TuneOptions, console: Console | None
) -> dict[str, list[Try]]:
    """What Optuna's tree-structured Parzen estimator suggests after the earlier tries, in a study a subject."""
    storage, wanted = open_storage(options.ledger), options.trials or _TRIALS
    folder, tries = options.order().folder(), {}
    with Display(console, runs=len(found) * wanted, measured_on="validation") as display:
        for subject in found:
            study = optuna.create_study(
                storage=storage,
                study_name=f"tune {recipe.name}: {subject.name}, {options.scale}, {options.validation} held out",
                direction="maximize" if _higher(subject.work(_first(recipe), options.validation)) else "minimize",
                load_if_exists=True,
            )

            def objective(trial: optuna.Trial, subject: Subject = subject) -> float:
                work = subject.work(search.suggested(recipe, trial), options.validation)
                try:
                    return work.perform(folder, options.data_dir, display)[work.metric]
                except BpfreeError as error:
                    trial.set_user_attr(_WRONG, str(error))
                    raise

            while len(ended := _ended(study)) < wanted:
                study.sampler = optuna.samplers.TPESampler(seed=_draws(study))
                # One that fails, be it that training diverged, has had its try.
                study.optimize(objective, n_trials=1, catch=(BpfreeError,))
            tries[subject.name] = [Try(trial.params, trial.value) for trial in ended[:wanted]]
    return tries


def _ended(study: optuna.Study) -> list[FrozenTrial]:
    """The tries that count: those of dead workers do not."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
    return [trial for trial in trials if trial.state == TrialState.COMPLETE or _WRONG in trial.user_attrs]


def _draws(study: optuna.Study) -> int:
    """A seed for the next try: one that begins with the others' would repeat their values."""
    return len(study.get_trials(deepcopy=False))


def _first(recipe: Recipe) -> dict[str, Any]:
    """Some values that the search allows."""
    return {name: among["low"] if isinstance(among, Mapping) else among[0] for name, among in recipe.search.items()}


def _higher(work: Training) -> bool:
    return TASKS[work.settings.task].metric.better == "higher"


def _best(subject: Subject, tries: Sequence[Try], options: TuneOptions) -> Try:
    """The best of a subject's tries; the first of several.

    Raises:
        RunError: None succeeded.
    """
    scored = [one for one in tries if one.score is not None]
    if not scored:
        raise RunError(f"{subject.name}: none of {len(tries)} tries succeeded. Search among other values.")
    higher = _higher(subject.work(scored[0].chosen, options.validation))
    return max(scored, key=lambda one: one.score if higher else -one.score)


def _written(
    recipe: Recipe, found: Sequence[Subject], best: Mapping[str, Try], options: TuneOptions, tries: int
) -> str:
    """The recipe with what was chosen, as YAML."""
    content = content_of(recipe.path)
    for subject in found:
        place = dict(content.get(subject.place) or {})
        place[subject.name] = merged(place.get(subject.name) or {}, search.settings(best[subject.name].chosen))
        content[subject.place] = place
    searched = content.pop("search")
    content["remarks"] = [
        *recipe.remarks,
        f"Chosen by {options.sampler} at scale {options.scale} on {options.validation} held-out training images, "
        f"one seed, {tries} tries for each of {', '.join(best)}, among {searched}.",
    ]
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)

"""The ledger: a record of every finished run, and who is at which of the others.

One study of Optuna's a recipe, one trial an attempt at a run. A trial waits, runs, and is complete (its attributes hold
the record, which Optuna lets nobody change) or failed. A run is known by its key alone; of several trials with one key
the first that has not failed is the one that counts, so that two processes may ask for the same run at once.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import optuna
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState, create_trial

from bpfree.lab.files import finite
from bpfree.lab.tables.storage import open_storage
from bpfree.lab.tables.work import Work

_KEY, _RECORD, _EPOCH, _WRONG = "key", "record", "epoch ", "wrong"


@dataclass(frozen=True)
class State:
    """How far the runs of a table are.

    Attributes:
        records: What is finished, by key.
        wrong: Why a run failed when it was last tried, by key.
        unfinished: Keys of the runs that wait or are being run.
    """

    records: dict[str, dict[str, Any]]
    wrong: dict[str, str]
    unfinished: set[str]


class Ledger:
    """The runs of one recipe.

    Args:
        place: The database: a URL, or the path of an SQLite file.
        name: The recipe's name.
        source: Only records that were measured with this state of the code count; None takes any.

    Raises:
        LedgerError: The database cannot be opened.
    """

    def __init__(self, place: str, name: str, *, source: str | None = None) -> None:
        self._storage = open_storage(place)
        self._study = optuna.create_study(storage=self._storage, study_name=f"table {name}", load_if_exists=True)
        self._id = self._storage.get_study_id_from_name(f"table {name}")
        self._source = source

    def ask(self, works: Iterable[Work], *, again: bool) -> None:
        """Let those of the runs wait that are neither finished nor waiting nor being run.

        Args:
            works: The runs.
            again: Also those that were tried and failed; otherwise only those whose worker died.
        """
        trials = self._trials()
        for work in works:
            known = trials.get(work.key, [])
            if self._first(known) is None and (again or not any(_WRONG in trial.user_attrs for trial in known)):
                told = {_KEY: work.key, "label": work.label, "seed": work.seed}
                self._study.add_trial(create_trial(state=TrialState.WAITING, user_attrs=told))

    def claim(self, works: Sequence[Work]) -> Claim | None:
        """The first of the runs that waits; it is the caller's alone. None if none waits."""
        self._revive(works)
        trials = self._trials()
        for work in works:
            trial = self._first(trials.get(work.key, []))
            if trial is None or trial.state != TrialState.WAITING:
                continue
            number = self._storage.get_trial_id_from_study_id_trial_number(self._id, trial.number)
            # The sign of life goes first: a worker that dies in between leaves a run that waits, and none that runs.
            self._storage.record_heartbeat(number)
            if self._start(number):
                return Claim(self._storage, number, work)
        return None

    def state(self, works: Iterable[Work]) -> State:
        """How far these runs are."""
        trials = self._trials()
        state = State({}, {}, set())
        for key in dict.fromkeys(work.key for work in works):
            known = trials.get(key, [])
            trial = self._first(known)
            if trial is None:
                reasons = [entry.user_attrs[_WRONG] for entry in known if _WRONG in entry.user_attrs]
                state.wrong.update({key: reasons[-1]} if reasons else {})
            elif trial.state == TrialState.COMPLETE:
                state.records[key] = _joined(trial.user_attrs)
            else:
                state.unfinished.add(key)
        return state

    def seeds(self) -> int:
        """One more than the highest seed of a record; 0 if there is none."""
        trials = [trial for known in self._trials().values() for trial in known]
        return max([trial.user_attrs["seed"] + 1 for trial in trials if trial.state == TrialState.COMPLETE], default=0)

    def adopt(self, records: Mapping[str, Mapping[str, Any]]) -> None:
        """Enter records by key that another ledger has given out, unless this one has them."""
        # Of any code: what is here already is not entered again because other code is asked for.
        here = {trial.user_attrs[_KEY] for trial in self._study.get_trials(False, (TrialState.COMPLETE,))}
        for key, record in records.items():
            if key not in here:
                told = {_KEY: key, "label": record["label"], "seed": record["seed"], **_split(record)}
                self._study.add_trial(create_trial(state=TrialState.COMPLETE, value=_value(record), user_attrs=told))

    def _revive(self, works: Sequence[Work]) -> None:
        """Give back what dead workers were at."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            fail_stale_trials(self._study)
        self.ask(works, again=False)

    def _start(self, number: int) -> bool:
        try:
            return self._storage.set_trial_state_values(number, TrialState.RUNNING)
        except optuna.exceptions.UpdateFinishedTrialError:
            return False

    def _trials(self) -> dict[str, list[FrozenTrial]]:
        """All attempts by key, the earliest first."""
        found: dict[str, list[FrozenTrial]] = {}
        for trial in self._study.get_trials(deepcopy=False):
            if self._counts(trial):
                found.setdefault(trial.user_attrs[_KEY], []).append(trial)
        return found

    def _counts(self, trial: FrozenTrial) -> bool:
        if self._source is None or trial.state != TrialState.COMPLETE:
            return True
        return trial.user_attrs[_RECORD]["code"]["source"] == self._source

    def _first(self, known: Sequence[FrozenTrial]) -> FrozenTrial | None:
        """The attempt that counts: the last record, or the first that may become one."""
        finished = [trial for trial in known if trial.state == TrialState.COMPLETE]
        alive = [trial for trial in known if trial.state in (TrialState.WAITING, TrialState.RUNNING)]
        return finished[-1] if finished else next(iter(alive), None)


class Claim:
    """A run that is the caller's alone, with a thread that shows that it lives; a context manager.

    Left by :meth:`finish` or :meth:`fail`; by an exception, the run is given back at once.
    """

    def __init__(self, storage: RDBStorage, number: int, work: Work) -> None:
        self.work = work
        self._storage, self._number = storage, number
        self._ended = threading.Event()
        self._pulse = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Claim:
        self._pulse.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._pulse.join()
        if error is not None:
            self._end(TrialState.FAIL, {})

    def finish(self, record: Mapping[str, Any]) -> None:
        """Enter the record."""
        self._end(TrialState.COMPLETE, _split(record), _value(record))

    def fail(self, reason: str) -> None:
        """Say why there is none; others of the same command will not try it again."""
        self._end(TrialState.FAIL, {_WRONG: reason})

    def _end(self, state: TrialState, told: Mapping[str, Any], value: float | None = None) -> None:
        # A machine that slept for longer than the grace period finds its run given to another, whose record counts.
        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            for name, content in told.items():
                self._storage.set_trial_user_attr(self._number, name, content)
            self._storage.set_trial_state_values(self._number, state, None if value is None else [value])

    def _beat(self) -> None:
        while not self._ended.wait(self._storage.get_heartbeat_interval()):
            # A database that does not answer now may do so at the next beat.
            with suppress(optuna.exceptions.StorageInternalError):
                self._storage.record_heartbeat(self._number)


def _split(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as attributes of a trial: each epoch one, because some databases take 64 KB and no more."""
    plain = finite(dict(record))
    epochs = plain.pop("epochs", [])
    return {_RECORD: plain, **{f"{_EPOCH}{number}": epoch for number, epoch in enumerate(epochs, start=1)}}


def _joined(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a trial's attributes."""
    epochs = sorted((name for name in attributes if name.startswith(_EPOCH)), key=lambda name: int(name[len(_EPOCH) :]))
    epochs_of = {"epochs": [attributes[name] for name in epochs]} if epochs else {}
    return attributes[_RECORD] | epochs_of


def _value(record: Mapping[str, Any]) -> float:
    """The number that Optuna's own tools show of a run."""
    value = record.get("value")
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0

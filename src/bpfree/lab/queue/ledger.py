"""The ledger: a record of every finished run, and who is at which of the others.

One study of Optuna's a recipe, one trial an attempt at a run. A trial waits, runs, and is complete (its attributes hold
the record, which Optuna lets nobody change) or failed. A run is known by its key alone; of several trials with one key
the first that has not failed is the one that counts, so that two processes may ask for the same run at once.
"""

from __future__ import annotations

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

from bpfree.errors import BpfreeWarning
from bpfree.lab.errors import DamageError, LedgerError
from bpfree.lab.queue import attempts, record_attributes
from bpfree.lab.queue.pulses import Pulses
from bpfree.lab.queue.storage import FAILURES, open_storage, patient
from bpfree.lab.queue.work_protocol import Work

_KEY = "key"


@dataclass(frozen=True)
class State:
    """How far the runs of a table are.

    Attributes:
        records: What is finished, by key.
        wrong: Why a run failed when it was last tried, by key.
        unfinished: Keys of the runs that wait or are being run, or whose worker has died.
    """

    records: dict[str, dict[str, Any]]
    wrong: dict[str, str]
    unfinished: set[str]


class Ledger:
    """The runs of one recipe.

    A database that does not answer for some seconds is asked again; for longer, every method raises LedgerError. A
    record that is not as it was written is named, and does not count.

    Args:
        place: The database: a URL, or the path of an SQLite file.
        name: The recipe's name.
        source: Only records that were measured with this state of the code count; None takes any.

    Raises:
        LedgerError: The database cannot be opened.
    """

    def __init__(self, place: str, name: str, *, source: str | None = None) -> None:
        self._storage, self._source = open_storage(place), source
        self._records: dict[int, dict[str, Any] | None] = {}  # of finished trials, which never change, by number
        self._pulses = Pulses()
        self._study, self._id = self._opened(f"table {name}")

    @patient
    def _opened(self, name: str) -> tuple[optuna.Study, int]:
        study = optuna.create_study(storage=self._storage, study_name=name, load_if_exists=True)
        return study, self._storage.get_study_id_from_name(name)

    @patient
    def ask(self, works: Iterable[Work], *, again: bool) -> None:
        """Let those of the runs wait that are neither finished nor waiting nor being run.

        Args:
            works: The runs.
            again: A command begins: also those that were tried and failed, and deaths of before are forgiven;
                otherwise only those whose worker died.
        """
        self._ask(works, again=again)

    @patient
    def claim(self, works: Sequence[Work]) -> Claim | None:
        """A run that waits, one that has failed least often first; it is the caller's alone. None if none waits."""
        self._revive(works)
        trials = self._trials()
        for work in sorted(works, key=lambda work: attempts.failures(trials.get(work.key, []))):
            trial = attempts.counting(trials.get(work.key, []))
            if trial is None or trial.state != TrialState.WAITING:
                continue
            number = self._storage.get_trial_id_from_study_id_trial_number(self._id, trial.number)
            # The sign of life goes first: a worker that dies in between leaves a run that waits, and none that runs.
            self._storage.record_heartbeat(number)
            if self._start(number):
                return Claim(self._storage, number, work)
        return None

    @patient
    def state(self, works: Iterable[Work]) -> State:
        """How far these runs are."""
        trials = self._trials()
        state = State({}, {}, set())
        for key in dict.fromkeys(work.key for work in works):
            known = trials.get(key, [])
            trial, reason = attempts.counting(known), attempts.reason(known)
            if trial is not None and trial.state == TrialState.COMPLETE:
                state.records[key] = self._record(trial) or {}
            elif trial is None and reason is not None:
                state.wrong[key] = reason
            elif known:
                state.unfinished.add(key)
        return state

    @patient
    def seeds(self) -> int:
        """One more than the highest seed of a run that has finished or failed; 0 if there is none."""
        trials = [trial for known in self._trials().values() for trial in known]
        ended = [trial for trial in trials if trial.state == TrialState.COMPLETE or attempts.WRONG in trial.user_attrs]
        return max([trial.user_attrs["seed"] + 1 for trial in ended], default=0)

    @patient
    def adopt(self, records: Mapping[str, Mapping[str, Any]]) -> None:
        """Enter records by key that another ledger has given out, unless this one has them."""
        # Of any code: what is here already is not entered again because other code is asked for.
        finished = self._study.get_trials(False, (TrialState.COMPLETE,))
        here = {trial.user_attrs[_KEY] for trial in finished if self._record(trial) is not None}
        for key, record in records.items():
            if key not in here:
                told = {_KEY: key, "label": record["label"], "seed": record["seed"], **record_attributes.split(record)}
                number = record_attributes.value(record)
                self._study.add_trial(create_trial(state=TrialState.COMPLETE, value=number, user_attrs=told))

    def _ask(self, works: Iterable[Work], *, again: bool) -> None:
        trials, added = self._trials(), {}
        for work in works:
            known = trials.get(work.key, [])
            trial = attempts.counting(known)
            if again and trial is not None and not trial.state.is_finished() and attempts.deaths(known):
                self._forgive(trial)
            if trial is not None or (attempts.reason(known) is not None and not again):
                continue
            if attempts.deaths(known) >= attempts.DEATHS and not again:
                self._add(work, TrialState.FAIL, {attempts.WRONG: _died(work)})
            else:
                added[work.key] = self._add(work, TrialState.WAITING, {attempts.ASKED: True} if again else {})
        if added:
            self._withdraw(added)

    def _forgive(self, alive: FrozenTrial) -> None:
        """Count no deaths of before this attempt: whole machines are switched off too, whatever runs on them."""
        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            number = self._storage.get_trial_id_from_study_id_trial_number(self._id, alive.number)
            self._storage.set_trial_user_attr(number, attempts.ASKED, True)

    def _add(self, work: Work, state: TrialState, told: Mapping[str, Any]) -> int:
        told = {_KEY: work.key, "label": work.label, "seed": work.seed, **told}
        return self._storage.create_new_trial(self._id, create_trial(state=state, user_attrs=told))

    def _withdraw(self, added: Mapping[str, int]) -> None:
        """Take back what another process has asked for between the look at the ledger and the asking."""
        trials = self._trials()
        for key, number in added.items():
            first = attempts.counting(trials[key])
            if first is not None and first.number != self._storage.get_trial_number_from_id(number):
                with suppress(optuna.exceptions.UpdateFinishedTrialError):
                    self._storage.set_trial_user_attr(number, attempts.WITHDRAWN, True)
                    self._storage.set_trial_state_values(number, TrialState.FAIL)

    def _revive(self, works: Sequence[Work]) -> None:
        """Give back what dead workers were at."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            fail_stale_trials(self._study)
        for number in self._pulses.stopped(self._storage, self._id):
            with suppress(optuna.exceptions.UpdateFinishedTrialError):
                self._storage.set_trial_state_values(number, TrialState.FAIL)
        self._ask(works, again=False)

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
        if attempts.WITHDRAWN in trial.user_attrs:
            return False
        if trial.state != TrialState.COMPLETE:
            return True
        record = self._record(trial)
        return record is not None and self._source in (None, record.get("code", {}).get("source"))

    def _record(self, trial: FrozenTrial) -> dict[str, Any] | None:
        """The record of a finished trial; None if it is damaged, which is told once."""
        if trial.number not in self._records:
            try:
                found = record_attributes.joined(trial.user_attrs)
                if found.get(_KEY, key := trial.user_attrs.get(_KEY)) != key:
                    raise DamageError("it stands under another run's key")
            except DamageError as error:
                warnings.warn(_broken(trial, error), BpfreeWarning, 2)
                self._records[trial.number] = None
            else:
                self._records[trial.number] = found
        return self._records[trial.number]


def _broken(trial: FrozenTrial, error: Exception) -> str:
    name = f"{trial.user_attrs.get('label', 'a run')}, seed {trial.user_attrs.get('seed', '?')}"
    return (
        f"the ledger's record {trial.number} ({name}) is damaged: {error}. It does not count; what the folder of "
        "results has of this run does, or it is measured anew."
    )


def _died(work: Work) -> str:
    return (
        f"{work.label}, seed {work.seed}: its worker died {attempts.DEATHS} times and said nothing. It may need more "
        "memory than there is, or a library has crashed: run it alone, with --workers 1 and --cell, and watch it."
    )


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
        try:
            self._pulse.start()
        except BaseException:  # such as Ctrl-C: nobody would end the thread
            self._ended.set()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._pulse.join()
        if error is not None and not isinstance(error, LedgerError):  # a database that is away cannot be told
            self._end(TrialState.FAIL, {attempts.GIVEN_BACK: True})

    def finish(self, record: Mapping[str, Any]) -> None:
        """Enter the record."""
        self._end(TrialState.COMPLETE, record_attributes.split(record), record_attributes.value(record))

    def fail(self, reason: str) -> None:
        """Say why there is none; others of the same command will not try it again."""
        self._end(TrialState.FAIL, {attempts.WRONG: reason})

    @patient
    def _end(self, state: TrialState, told: Mapping[str, Any], value: float | None = None) -> None:
        # A machine that slept for longer than the grace period finds its run given to another, whose record counts.
        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            for name, content in told.items():
                self._storage.set_trial_user_attr(self._number, name, content)
            self._storage.set_trial_state_values(self._number, state, None if value is None else [value])

    def _beat(self) -> None:
        while not self._ended.wait(self._storage.get_heartbeat_interval()):
            # A database that does not answer now may do so at the next beat.
            with suppress(*FAILURES):
                self._storage.record_heartbeat(self._number)

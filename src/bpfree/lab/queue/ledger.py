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
from types import TracebackType
from typing import Any

import optuna
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState, create_trial

from bpfree.errors import BpfreeWarning
from bpfree.lab.errors import DamageError, LedgerError
from bpfree.lab.queue import attempts, record_attributes
from bpfree.lab.queue.pulses import Pulses
from bpfree.lab.queue.snapshot import Snapshot, State
from bpfree.lab.queue.storage import FAILURES, open_storage, patient
from bpfree.lab.queue.work_protocol import Work


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
    def snapshot(self) -> Snapshot:
        """Return all attempts that there are now."""
        return self._look()

    def state(self, works: Iterable[Work]) -> State:
        """Return how far these runs are."""
        return self.snapshot().state(works)

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
        """Claim, for the caller alone, a waiting run that has failed least often, and return it; None if none waits."""
        self._revive(works)
        known = self._look().attempts
        for work in sorted(works, key=lambda work: attempts.failures(known.get(work.key, []))):
            trial = attempts.counting(known.get(work.key, []))
            if trial is None or trial.state != TrialState.WAITING:
                continue
            number = self._storage.get_trial_id_from_study_id_trial_number(self._id, trial.number)
            # The sign of life goes first: a worker that dies in between leaves a run that waits, and none that runs.
            self._storage.record_heartbeat(number)
            if self._start(number):
                return Claim(self._storage, number, work)
        return None

    @patient
    def adopt(self, records: Mapping[str, Mapping[str, Any]]) -> None:
        """Enter records by key that another ledger has given out, unless this one has them."""
        seen = self._look()
        for key, record in records.items():
            if not seen.has_record(key):
                told = _named(key, record["label"], record["seed"]) | record_attributes.split(record)
                number = record_attributes.value(record)
                self._study.add_trial(create_trial(state=TrialState.COMPLETE, value=number, user_attrs=told))

    def _ask(self, works: Iterable[Work], *, again: bool) -> None:
        seen, added = self._look().attempts, {}
        for work in works:
            known = seen.get(work.key, [])
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
        told = {**_named(work.key, work.label, work.seed), **told}
        return self._storage.create_new_trial(self._id, create_trial(state=state, user_attrs=told))

    def _withdraw(self, added: Mapping[str, int]) -> None:
        """Take back what another process has asked for between the look at the ledger and the asking."""
        seen = self._look().attempts
        for key, number in added.items():
            first = attempts.counting(seen[key])
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

    def _look(self) -> Snapshot:
        trials = self._study.get_trials(deepcopy=False)
        finished = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        return Snapshot(trials, {trial.number: self._record(trial) for trial in finished}, self._source)

    def _record(self, trial: FrozenTrial) -> dict[str, Any] | None:
        """Return the record of a finished trial; None if it is damaged, which is told once."""
        if trial.number not in self._records:
            try:
                found = record_attributes.joined(trial.user_attrs)
                if found.get(attempts.KEY, key := trial.user_attrs.get(attempts.KEY)) != key:
                    raise DamageError("it stands under another run's key")
            except DamageError as error:
                warnings.warn(_broken(trial, error), BpfreeWarning, 2)
                self._records[trial.number] = None
            else:
                self._records[trial.number] = found
        return self._records[trial.number]


def _named(key: str, label: str, seed: int) -> dict[str, Any]:
    return {attempts.KEY: key, "label": label, "seed": seed}


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

"""The ledger at one moment: which attempts there are at each run, and how far the runs are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from bpfree.lab.queue import attempts
from bpfree.lab.queue.work_protocol import Work


@dataclass(frozen=True)
class State:
    """The state of a table's runs.

    Attributes:
        records: The records of finished runs, by key.
        wrong: Why a run failed when it was last tried, by key.
        unfinished: Keys of the runs that wait or are being run, or whose worker has died.
    """

    records: dict[str, dict[str, Any]]
    wrong: dict[str, str]
    unfinished: set[str]


class Snapshot:
    """All attempts that a ledger held when it was asked.

    Args:
        trials: The attempts, the earliest first.
        records: The record of each finished attempt by its number; None where it is damaged.
        source: Only records that were measured with this state of the code count; None takes any.

    Attributes:
        attempts: The attempts that count by the key of their run, the earliest first.
    """

    def __init__(
        self, trials: Sequence[FrozenTrial], records: Mapping[int, dict[str, Any] | None], source: str | None
    ) -> None:
        self._trials, self._records, self._source = trials, records, source
        whole = (trial for trial in trials if records.get(trial.number) is not None)
        self._finished = {trial.user_attrs[attempts.KEY] for trial in whole}
        self.attempts: dict[str, list[FrozenTrial]] = {}
        for trial in trials:
            if self._counts(trial):
                self.attempts.setdefault(trial.user_attrs[attempts.KEY], []).append(trial)

    def of_any_code(self) -> Snapshot:
        """Return the same moment, with the records of every state of the code."""
        return self if self._source is None else Snapshot(self._trials, self._records, None)

    def state(self, works: Iterable[Work]) -> State:
        """Return how far these runs were."""
        state = State({}, {}, set())
        for key in dict.fromkeys(work.key for work in works):
            known = self.attempts.get(key, [])
            trial, reason = attempts.counting(known), attempts.reason(known)
            if trial is not None and trial.state == TrialState.COMPLETE:
                state.records[key] = self._records[trial.number] or {}
            elif trial is None and reason is not None:
                state.wrong[key] = reason
            elif known:
                state.unfinished.add(key)
        return state

    @property
    def seeds(self) -> int:
        """Return one more than the highest seed of a run that has finished or failed; 0 if there is none."""
        trials = [trial for known in self.attempts.values() for trial in known]
        ended = [trial for trial in trials if trial.state == TrialState.COMPLETE or attempts.WRONG in trial.user_attrs]
        return max([trial.user_attrs["seed"] + 1 for trial in ended], default=0)

    def has_record(self, key: str) -> bool:
        """Return whether a run has a whole record, of whichever state of the code."""
        return key in self._finished

    def _counts(self, trial: FrozenTrial) -> bool:
        if attempts.WITHDRAWN in trial.user_attrs:
            return False
        if trial.state != TrialState.COMPLETE:
            return True
        record = self._records[trial.number]
        return record is not None and self._source in (None, record.get("code", {}).get("source"))

"""Facts about one run, from its attempts: the trials of its key, in the order in which they were asked for."""

from __future__ import annotations

from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState

KEY = "key"
"""Attribute of every attempt: the key of its run."""
WRONG = "wrong"
"""Attribute of a failed attempt: why. One whose worker died has none."""
GIVEN_BACK = "given back"
"""Attribute of an attempt that was interrupted: its worker lived on to say so."""
WITHDRAWN = "withdrawn"
"""Attribute of an attempt that was asked for twice at the same moment; it counts for nothing."""
ASKED = "asked"
"""Attribute of the attempt with which a command began: what became of those before it is forgiven."""
DEATHS = 3
"""So many workers may die of a run and say nothing; then it has failed."""


def counting(known: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """Return the attempt that counts: the last record, or the first that may become one."""
    finished = [trial for trial in known if trial.state == TrialState.COMPLETE]
    alive = [trial for trial in known if trial.state in (TrialState.WAITING, TrialState.RUNNING)]
    return finished[-1] if finished else next(iter(alive), None)


def reason(known: Sequence[FrozenTrial]) -> str | None:
    """Return why the last attempt failed; None if it did not fail, or if its worker said nothing."""
    return known[-1].user_attrs.get(WRONG) if known else None


def deaths(known: Sequence[FrozenTrial]) -> int:
    """Return how many workers died at the run without a word since a command last asked for it."""
    began = [number for number, trial in enumerate(known) if trial.user_attrs.keys() & {ASKED, WRONG}]
    return sum(_failed(trial) for trial in known[began[-1] if began else 0 :] if WRONG not in trial.user_attrs)


def failures(known: Sequence[FrozenTrial]) -> int:
    """Return how many attempts failed, including workers' deaths, but not interruptions."""
    return sum(_failed(trial) for trial in known)


def _failed(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.FAIL and GIVEN_BACK not in trial.user_attrs

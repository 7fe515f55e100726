"""Signs of life of workers, judged by whether they go on, whatever the clocks of machines say."""

from __future__ import annotations

import time

from optuna.storages import RDBStorage
from sqlalchemy import text

from bpfree.lab.queue.storage import GRACE

_LAST = text(
    "SELECT trials.trial_id, heartbeat FROM trials "
    "JOIN trial_heartbeats ON trials.trial_id = trial_heartbeats.trial_id "
    "WHERE trials.study_id = :study AND trials.state = 'RUNNING'"
)


class Pulses:
    """Remembers when the last sign of life of a running trial was first seen.

    Optuna compares the time in a sign of life with the present one. Where a clock has been set back, that of a dead
    worker lies in the future, and would count for as long.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[str, float]] = {}

    def stopped(self, storage: RDBStorage, study: int) -> list[int]:
        """Return the running trials of a study that have shown no new sign of life for the grace period."""
        now = time.monotonic()
        with storage.engine.connect() as connection:
            last = {number: str(beat) for number, beat in connection.execute(_LAST, {"study": study})}
        self._seen = {
            number: self._seen[number] if self._seen.get(number, ("", 0.0))[0] == beat else (beat, now)
            for number, beat in last.items()
        }
        return [number for number, (_, since) in self._seen.items() if now - since > GRACE]

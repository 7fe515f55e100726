"""The speed of a run's last steps, and the time that is left."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

_STEPS = 50  # the last ones, over which speed is measured


class Pace:
    """Measures how fast a run goes on, from the times at which its steps end.

    A run has parts of many steps, with something else between them: evaluations. The time of the last one between two
    parts is taken for each of those to come.

    Args:
        clock: Returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends = deque[tuple[float, int]](maxlen=_STEPS + 1)
        self._between = 0.0
        self._last: float | None = None

    def begin_part(self) -> None:
        """Begin to measure a part of a run: what lies between it and the one before is no step."""
        now = self._clock()
        if self._last is not None:
            self._between = now - self._last
        self._ends.clear()
        self._ends.append((now, 0))

    def step(self, samples: int) -> None:
        """Note that a step on so many samples is done."""
        self._last = self._clock()
        self._ends.append((self._last, samples))

    @property
    def samples_per_second(self) -> float | None:
        """Samples a second over the last steps; None before the first step of a part."""
        return self._per_second(sum(samples for _, samples in list(self._ends)[1:]))

    def left(self, steps: int, parts: int) -> float | None:
        """Return the seconds of so many steps, and of what comes behind so many parts; None likewise."""
        speed = self._per_second(len(self._ends) - 1)
        return None if speed is None else steps / speed + parts * self._between

    def _per_second(self, number: int) -> float | None:
        if len(self._ends) < 2:
            return None
        taken = self._ends[-1][0] - self._ends[0][0]
        return number / taken if taken > 0 and number else None

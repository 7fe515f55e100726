"""A time for everything, divided over groups of measurements."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median


class Budget:
    """Divides seconds over groups by weight. What a group leaves goes to the groups behind it.

    Args:
        seconds: The time for all groups together.
        weights: The weight of each group, in their order.
        now: A clock, in seconds.
    """

    def __init__(self, seconds: float, weights: Mapping[str, float], now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._weights = now, dict(weights)
        self._end = self._group_end = now() + seconds
        self._took: list[float] = []
        self._began = 0.0

    def begin_group(self, name: str) -> None:
        """Begin a group, which gets its part of the time that is left."""
        left = max(0.0, self._end - self._now())
        part = self._weights[name] / sum(self._weights.values())
        del self._weights[name]
        self._group_end, self._took = self._now() + part * left, []

    def begin_cell(self, cells: int) -> float | None:
        """Begin a measurement, with ``cells`` of the group left, itself included.

        Returns:
            The seconds that it may take; None if there are none, or if half of those before it took longer.
        """
        self._began = self._now()
        left = self._group_end - self._began
        return left / cells if left > (median(self._took) if self._took else 0.0) else None

    def end_cell(self) -> None:
        """Take note of how long a measurement took."""
        self._took.append(self._now() - self._began)

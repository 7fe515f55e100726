"""State of the running pass, one for each thread: an attached model may be evaluated while it trains."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

State = TypeVar("State")


class PerThread(Generic[State]):
    """One ``State`` for each thread, made when the thread first asks for it.

    A copy, by ``copy`` or ``pickle``, begins empty: a running pass is not saved.

    Args:
        make: Makes a new state.
    """

    def __init__(self, make: Callable[[], State]) -> None:
        self._make = make
        self._local = threading.local()

    def __call__(self) -> State:
        """Return the state of this thread."""
        try:
            found: State = self._local.state
        except AttributeError:
            found = self._local.state = self._make()
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return PerThread, (self._make,)

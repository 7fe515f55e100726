"""Forward-mode differentiation in several threads: torch has one level of it and its switches, in all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch.autograd.forward_ad as forward_mode


class Shared:
    """A context of the whole process that several threads may be in: the first opens it, the last closes it.

    Nobody waits for anybody: a lock over whole passes would stop two threads for ever whose passes meet in a
    collective operation. And none puts back what another one has set.

    Args:
        make: Makes the context manager.
    """

    def __init__(self, make: Callable[[], AbstractContextManager[Any]]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._inside = 0
        self._open: AbstractContextManager[Any] | None = None

    @contextmanager
    def __call__(self) -> Generator[None]:
        """Return a context in which the level is entered."""
        self._enter()
        try:
            yield
        finally:
            self._leave()

    def _enter(self) -> None:
        with self._lock:
            if not self._inside:
                opened = self._make()
                opened.__enter__()
                self._open = opened
            self._inside += 1

    def _leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside and self._open is not None:
                opened, self._open = self._open, None
                opened.__exit__(None, None, None)


dual_level = Shared(forward_mode.dual_level)
"""Within this context there are dual numbers. Tangents belong to their tensors: threads do not see each other's."""

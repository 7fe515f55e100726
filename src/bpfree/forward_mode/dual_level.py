"""Forward-mode differentiation in several threads: torch has one level of it and its switches, in all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any

import torch.autograd.forward_ad as forward_mode


class Shared:
    """A state of the whole process that passes of several threads may need: the first opens it, the last closes it.

    Nobody waits for anybody: a lock over whole passes would stop two threads for ever whose passes meet in a
    collective operation. And none puts back what another one has set.

    Ctrl-C may come between any two steps. What it leaves half done is put right by whoever leaves, or by the next one
    to enter.

    Args:
        begin: Opens it, or raises and has done nothing.
        end: Closes it, also where it is half open or half closed.
    """

    def __init__(self, begin: Callable[[], None], end: Callable[[], None]) -> None:
        self._begin, self._end = begin, end
        self._lock = threading.Lock()
        # A token for each pass that is inside, and its thread.
        self._inside: dict[object, int] = {}
        self._is_open = False

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy, of a mechanism with its model, has its own methods and is in no pass.
        return Shared, (self._begin, self._end)

    @contextmanager
    def __call__(self) -> Generator[None]:
        """Return a context in which the state is entered."""
        token = object()
        try:
            self._enter(token)
            yield
        finally:
            self._leave({token})

    def mine(self) -> set[object]:
        """The passes of this thread that are inside."""
        thread = threading.get_ident()
        return {token for token, owner in list(self._inside.items()) if owner == thread}

    def leave_others(self, known: set[object]) -> None:
        """End the passes of this thread that are not among ``known``: they were interrupted."""
        self._leave(self.mine() - known)

    def _enter(self, token: object) -> None:
        with self._lock:
            if self._is_open and not self._inside:
                self._close()
            self._inside[token] = threading.get_ident()
            if not self._is_open:
                self._is_open = True
                try:
                    self._begin()
                except Exception:
                    self._is_open = False
                    raise

    def _leave(self, tokens: set[object]) -> None:
        with self._lock:
            for token in tokens:
                self._inside.pop(token, None)
            if self._is_open and not self._inside:
                self._close()

    def _close(self) -> None:
        self._end()
        self._is_open = False


def _open_level() -> None:
    forward_mode._maybe_load_decompositions()  # type: ignore[no-untyped-call]  # derivatives that torch has in Python
    forward_mode.enter_dual_level()  # type: ignore[no-untyped-call]


def _close_level() -> None:
    forward_mode._current_level = 0
    with suppress(RuntimeError):  # torch had it not open yet, or not any more
        forward_mode.exit_dual_level()  # type: ignore[no-untyped-call]
    forward_mode._current_level = -1


dual_level = Shared(_open_level, _close_level)
"""Within this context there are dual numbers. Tangents belong to their tensors: threads do not see each other's."""

"""The forward passes that are under way: one inside another, and several threads beside each other."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Generic, TypeAlias, TypeVar

import torch

from bpfree.per_thread import PerThread

Pass = TypeVar("Pass")
_Place: TypeAlias = tuple[int, CodeType | None]


class Passes(Generic[Pass]):
    """The passes that the present thread is in, the innermost last.

    A pass begins in a forward pre-hook and ends in a forward hook. Torch calls the second one not at all where a
    ``KeyboardInterrupt`` ends the pass. So each is kept with the Python frame that runs it: a pass whose frame is not
    being run any more is over.
    """

    def __init__(self) -> None:
        self._stack: PerThread[list[tuple[_Place, Pass]]] = PerThread(list)

    def begin(self, run: Pass) -> list[Pass]:
        """Begin a pass, from a hook ``_begin`` of the module whose call it is.

        Returns:
            The passes that were interrupted and are dropped.
        """
        if torch.compiler.is_compiling():  # no frames are there, and no interrupts
            self._stack().append(((0, None), run))
            return []
        runner = sys._getframe(1)
        while runner.f_code.co_name == "_begin" and runner.f_back is not None:
            runner = runner.f_back
        dropped = self._dropped(runner.f_back)
        self._stack().append((_place(runner), run))
        return dropped

    def now(self) -> Pass | None:
        """Return the pass that this thread is in, or None."""
        stack = self._stack()
        return stack[-1][1] if stack else None

    def end(self) -> Pass | None:
        """End the innermost pass."""
        stack = self._stack()
        return stack.pop()[1] if stack else None

    @contextmanager
    def aside(self) -> Generator[None]:
        """Within this context this thread is in no pass."""
        stack = self._stack()
        kept = stack[:]
        stack.clear()
        try:
            yield
        finally:
            stack[:] = kept

    def drop_interrupted(self) -> list[Pass]:
        """Forget the passes that were interrupted, and return them."""
        return self._dropped(sys._getframe(1))

    def clear(self) -> list[Pass]:
        """Forget all passes of this thread, and return them."""
        stack = self._stack()
        passes = [run for _, run in reversed(stack)]
        stack.clear()
        return passes

    def _dropped(self, frame: FrameType | None) -> list[Pass]:
        stack, dropped = self._stack(), []
        if not stack:
            return []
        running = set()
        while frame is not None:
            running.add(_place(frame))
            frame = frame.f_back
        while stack and stack[-1][0] not in running:
            dropped.append(stack.pop()[1])
        return dropped


def _place(frame: FrameType) -> _Place:
    # Not the frame itself, which would keep all that its function holds.
    return id(frame), frame.f_code

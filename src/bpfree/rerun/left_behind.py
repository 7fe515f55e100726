"""Show gradients that run inside a rerun the state that the first run of the pass has left.

Hooks on gradients, and the backward passes of a user's own functions, may read and move what a model keeps: counters,
running statistics of gradients, random numbers. In plain training they find what the forward pass left, and what they
leave stays.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager

from torch import nn

from bpfree.compiled_code import outside_compiled_code
from bpfree.rerun.module_state import Moment, State
from bpfree.rerun.random_state import RandomState


class LeftState:
    """The contents of one :class:`State` before a rerun.

    Args:
        state: Everything that is kept.
        begin: The moment from which the second run begins.
    """

    def __init__(self, state: State, begin: Moment) -> None:
        self._state, self._begin = state, begin
        state.note(begin)
        self._moment = state.now().with_those_of(begin)
        self._versions = begin.versions()

    @contextmanager
    def shown(self) -> Generator[None]:
        """Within this context everything holds that again; what is changed meanwhile stays."""
        of_run, versions = self._state.now().with_those_of(self._moment), self._begin.versions()
        self._moment.put()
        try:
            yield
        finally:
            moved = [now - before for now, before in zip(self._begin.versions(), versions, strict=True)]
            if any(moved) or self._moment.changed():
                self._state.is_moved_by_gradients = True
            self._versions = [before + by for before, by in zip(self._versions, moved, strict=True)]
            self._moment = self._state.now().with_those_of(of_run)
            of_run.put()

    def put(self) -> None:
        """Put it back for good."""
        self._moment.put()

    def check(self) -> None:
        """Raise SecondRunError if the second run has written to a tensor itself that it began with."""
        self._begin.check(self._versions)


class LeftBehind:
    """The state that a pass has left: random numbers, and the contents of the model and its arguments.

    Args:
        model: The model.
        states: The state of the model first, then that of the arguments, if they keep anything.
    """

    @outside_compiled_code
    def __init__(self, model: nn.Module, states: Sequence[tuple[State, Moment]]) -> None:
        self._model, self._random = model, RandomState.now(model)
        self._of_model = states[0][0]
        self._states = [LeftState(state, begin) for state, begin in states]

    def put(self) -> None:
        """Put it back for good."""
        for left in self._states:
            left.put()
        self._random.restore()

    def check(self) -> None:
        """Raise SecondRunError if the second run has written to a tensor itself that it began with."""
        for left in self._states:
            left.check()

    @contextmanager
    def shown(self) -> Generator[None]:
        """Within this context everything is as the pass left it; what is changed meanwhile stays."""
        of_run = RandomState.now(self._model)
        with ExitStack() as stack:
            for left in self._states:
                stack.enter_context(left.shown())
            self._random.restore()
            try:
                yield
            finally:
                drawn = RandomState.now(self._model)
                if not drawn.is_same(self._random):
                    self._of_model.is_moved_by_gradients = True
                self._random = drawn
                of_run.restore()

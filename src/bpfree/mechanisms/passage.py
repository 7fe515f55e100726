"""One forward pass: where its graph is cut, and on which way the error's signals reach the pieces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from bpfree.mechanisms.broadcast import broadcast
from bpfree.memory_format import format_of
from bpfree.segments import Reach


class Departure(Protocol):
    """What a forward pass leaves for its error: called with dL/do, it returns one signal for each tap."""

    def __call__(self, error: Tensor) -> Sequence[Tensor | None]:
        """The signals."""

    def passed(self, number: int, output: Tensor, error: Tensor) -> None:
        """Hear of a tap's output that is there only now, behind the error and before the tap's signal is asked for."""

    def end(self, error: Tensor) -> None:
        """Hear that all taps have passed."""


class Run(ABC):
    """One run of the model, cut at its taps.

    Attributes:
        names: The tap modules that were reached, one entry a call.
        teaching: Whether a segment learns while the model runs: what runs through a tap then is a checkpoint.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.teaching = False

    @contextmanager
    def taught(self) -> Generator[None]:
        """The context in which a segment learns."""
        self.teaching = True
        try:
            yield
        finally:
            self.teaching = False

    def again(self, name: str, output: Tensor) -> Tensor:
        """What a tap hands on where a checkpoint runs it again: cut as it was, or it would save other tensors."""
        return output.detach() if name in self.names else output

    def cut(self, name: str, output: Tensor) -> Tensor:
        """Take the output of a tap, and return what the tap hands on: the same numbers without their graph."""
        self.names.append(name)
        return self._taken(output)

    @abstractmethod
    def _taken(self, output: Tensor) -> Tensor:
        """Do with a tap's output what this run is for, and return what the tap hands on."""


class Passage(Run):
    """A run whose error will come: a forward pass of the user's.

    Attributes:
        names: The tap modules that were reached, one entry a call.
        shapes: The shapes of their outputs.
        formats: How these lie in memory.
        left: Whether the pass has reached the place where the error is taken.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[torch.Size] = []
        self.formats: list[torch.memory_format] = []
        self.left = False
        self._handed_on: Tensor | None = None

    def enter(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Hear with which arguments the model begins; (args, kwargs) where it is to begin with others."""
        return None

    @property
    def outputs(self) -> Sequence[Tensor]:
        """The taps' outputs h_l with the graphs of their segments, where the passage keeps them."""
        return ()

    def cut(self, name: str, output: Tensor) -> Tensor:
        """Take the output of a tap, and return what the tap hands on: the same numbers without their graph."""
        self.shapes.append(output.shape)
        self.formats.append(format_of(output))
        self._handed_on = super().cut(name, output)
        return self._handed_on

    @staticmethod
    def recut(output: Tensor) -> Tensor:
        """What a tap hands on where a checkpoint runs it again: autograd must save the same tensors behind it."""
        return output.detach()

    def ends_the_model(self, output: Tensor) -> bool:
        """Whether ``output`` is what the last tap has handed on."""
        return output is self._handed_on

    def uncut(self) -> Tensor:
        """Take the last tap back, and return its output."""
        self.names.pop()
        self.shapes.pop()
        self.formats.pop()
        return self._given_back()

    def close(self) -> None:
        """Put back what the passage has changed around it; called where the error is taken, or in its stead."""

    def ended(self, output: Any) -> None:
        """Hear what the model has returned."""

    def learns(self, output: Tensor) -> bool:
        """Whether anything between the last tap and ``output`` wants a gradient."""
        return output.requires_grad

    @abstractmethod
    def _given_back(self) -> Tensor:
        """Forget the last tap, and return its output."""

    @abstractmethod
    def ends(self, output: Tensor) -> Sequence[Sequence[Tensor]]:
        """The leaves that every segment ends in; that of ``output``, where the error is taken, is the last."""

    @abstractmethod
    def leave(self, output: Tensor, deliver: Departure, *, just_in_time: bool) -> Tensor:
        """The output as it is, with a graph through which its gradient, the error, starts ``deliver``'s signals.

        Args:
            output: Where the error is taken.
            deliver: Maps dL/do to one signal for each tap.
            just_in_time: Whether signals are to be made only when their segments are about to run.
        """


class Cut(Passage):
    """The plain way: every segment's graph is kept until one backward pass runs them all."""

    def __init__(self) -> None:
        super().__init__()
        self._outputs: list[Tensor] = []

    @property
    def outputs(self) -> Sequence[Tensor]:
        """The taps' outputs h_l with the graphs of their segments."""
        return self._outputs

    def _taken(self, output: Tensor) -> Tensor:
        self._outputs.append(output)
        return output.detach()

    def _given_back(self) -> Tensor:
        return self._outputs.pop()

    def ends(self, output: Tensor) -> Sequence[Sequence[Tensor]]:
        """The leaves that every segment ends in."""
        return [Reach.of(root).leaves for root in (*self._outputs, output)]

    def leave(self, output: Tensor, deliver: Departure, *, just_in_time: bool) -> Tensor:
        """See :func:`bpfree.mechanisms.broadcast.broadcast`."""
        return broadcast(deliver, output, self._outputs, just_in_time=just_in_time)

"""One forward pass: where its graph is cut, and on which way the error's signals reach the pieces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from bpfree.mechanisms.broadcast import Deliver, broadcast


class Passage(ABC):
    """One forward pass under way.

    Attributes:
        names: The tap modules that were reached, one entry a call.
        shapes: The shapes of their outputs.
        left: Whether the pass has reached the place where the error is taken.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.shapes: list[torch.Size] = []
        self.left = False
        self._handed_on: Tensor | None = None

    @property
    def outputs(self) -> Sequence[Tensor]:
        """The taps' outputs h_l with the graphs of their segments, where the passage keeps them."""
        return ()

    def cut(self, name: str, output: Tensor) -> Tensor:
        """Take the output of a tap, and return the same numbers without their graph: what the tap hands on."""
        self.names.append(name)
        self.shapes.append(output.shape)
        self._handed_on = self._taken(output)
        return self._handed_on

    def ends_the_model(self, output: Tensor) -> bool:
        """Whether ``output`` is what the last tap has handed on."""
        return output is self._handed_on

    def uncut(self) -> Tensor:
        """Take the last tap back, and return its output."""
        self.names.pop()
        self.shapes.pop()
        return self._given_back()

    @abstractmethod
    def _taken(self, output: Tensor) -> Tensor:
        """Keep what this way needs of a tap's output, and return what the tap hands on."""

    @abstractmethod
    def _given_back(self) -> Tensor:
        """Forget the last tap, and return its output."""

    @abstractmethod
    def leave(self, output: Tensor, deliver: Deliver, *, just_in_time: bool) -> Tensor:
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

    def leave(self, output: Tensor, deliver: Deliver, *, just_in_time: bool) -> Tensor:
        """See :func:`bpfree.mechanisms.broadcast.broadcast`."""
        return broadcast(deliver, output, self._outputs, just_in_time=just_in_time)

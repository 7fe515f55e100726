"""One forward pass: it cuts the graph at the taps, and connects the error to the segments."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from bpfree.axes.memory_format import format_of
from bpfree.axes.place import name_of_call
from bpfree.error_values import Path
from bpfree.errors import TapOutputError
from bpfree.mechanisms.autograd import Fetching, gated, signals_from_error
from bpfree.mechanisms.direct.alternation import EVERY_TAP, Phase
from bpfree.mechanisms.direct.delivery import ErrorHandler
from bpfree.mechanisms.direct.side_terms import SoftTap
from bpfree.rerun.stop import StopForward
from bpfree.segments import Reach

Cut: TypeAlias = Callable[[Tensor], Tensor]
"""Maps a tap's output to the tensor that the tap hands on. It must not hold a pass, because it lives longer."""


class TappedPass(ABC):
    """A pass of the model, cut at its taps, or at those that its phase says.

    Attributes:
        names: The names of the tap modules that were reached, one entry per call.
        places: The names of these calls: the module's name, with ``#2``, ``#3``, ... from its second call on.
        aside: The calls that are left alone: no error lies above them.
        reached: The errors' places that the pass has reached.
        error_path: Where the error is in the output at its place, if it is the only one; "" if it is that output.
        late: The first tap that the user named and that was called after all of them; None if there is none.
        phase: Which taps are cut; through the others the graph goes on.
    """

    phase: Phase = EVERY_TAP

    def __init__(self) -> None:
        self.names: list[str] = []
        self.places: list[str] = []
        self.aside: frozenset[str] = frozenset()
        self.reached: set[str] = set()
        self.error_path: Path = ""
        self.late: str | None = None
        self._calls: dict[str, int] = {}

    def count_call(self, name: str) -> str:
        """Count the next call of a tap module, and return the call's name."""
        calls = self._calls[name] = self._calls.get(name, 0) + 1
        return name_of_call(name, calls)

    def reach_again(self, name: str, output: Any) -> Any:
        """Handle the output at an error's place in a rerun; return its replacement, or None to leave it as it is."""
        raise StopForward(output)

    def cut(self, name: str, place: str, output: Tensor) -> Tensor:
        """Take the output of a tap's call, and return the tensor to hand on: without its graph if the tap is cut."""
        self.names.append(name)
        self.places.append(place)
        return self._hand_on(output)

    def is_cut(self, number: int) -> bool:
        """Return whether the tap of this number is cut."""
        return self.phase is EVERY_TAP or self.phase.cuts(number, self.places[number])

    def last_cut(self) -> Cut:
        """Return the cut of the last tap; a checkpoint's second run repeats it, to save the same tensors."""
        return self._cut_of_last() if self.is_cut(len(self.names) - 1) else let_pass

    def _hand_on(self, output: Tensor) -> Tensor:
        """Handle the output of the last tap, and return the tensor that it hands on."""
        return self._take(output) if self.is_cut(len(self.names) - 1) else self._let_pass(output)

    def _cut_of_last(self) -> Cut:
        """Return what a checkpoint's second run repeats at a tap that was cut."""
        return detached

    @abstractmethod
    def _take(self, output: Tensor) -> Tensor:
        """Handle the output of a tap that is cut, and return the tensor that the tap hands on."""

    def _let_pass(self, output: Tensor) -> Tensor:
        """Handle the output of a tap that is not cut, and return the tensor that the tap hands on."""
        return output


def detached(output: Tensor) -> Tensor:
    """Return the same numbers without a graph."""
    return output.detach()


def let_pass(output: Tensor) -> Tensor:
    """Return the output of a tap that is not cut."""
    return output


class TrainingPass(TappedPass):
    """A forward pass of the user: its error will come.

    Attributes:
        names: The names of the tap modules that were reached, one entry per call.
        shapes: The shapes of their outputs.
        formats: Their memory formats.
        versions: Their versions (how often they had been written to); None in a compiled graph, which overwrites
            nothing.
        handed_on: The tensors that the taps gave to the next layers.
        fetching: True if a side term fetches its gradient from this pass's graph.
        several: True if several errors are taken: the taps may get signals from each of them.
        stores_graph: True if what is made below the error has the graph of its segment when the pass ends.
        has_graph: True if the error has the graph of the last segment when the pass reaches it.
    """

    stores_graph = True
    has_graph = True

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[torch.Size] = []
        self.formats: list[torch.memory_format] = []
        self.versions: list[int | None] = []
        self.handed_on: list[Tensor] = []
        self.fetching = Fetching()
        self.several = False

    def enter(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Take note of the model's arguments; return other (args, kwargs) to exchange them, or None."""
        return None

    @property
    def outputs(self) -> Sequence[Tensor]:
        """The taps' outputs h_l with the graphs of their segments, if the pass keeps them."""
        return ()

    @property
    def soft_taps(self) -> Sequence[SoftTap]:
        """The taps whose numbers side terms use."""
        return ()

    def cut(self, name: str, place: str, output: Tensor) -> Tensor:
        """Take the output of a tap's call, and return the tensor to hand on: without its graph if the tap is cut."""
        self.shapes.append(output.shape)
        self.formats.append(format_of(output))
        self.versions.append(None if torch.compiler.is_compiling() else output._version)
        self.names.append(name)
        self.places.append(place)
        handed_on = self._hand_on(output)
        self.handed_on.append(handed_on)
        return handed_on

    def ends_in_tap(self, output: Tensor) -> int | None:
        """Return the number of the tap that handed ``output`` on, if the error is taken right there; else None."""
        for number in reversed(range(len(self.handed_on))):  # the last tap first: it nearly always is that one
            if self.handed_on[number] is output:
                return number
        return None

    def uncut(self) -> Tensor:
        """Take the last tap back, and return its output."""
        for entries in (self.names, self.places, self.shapes, self.formats, self.versions):
            entries.pop()
        return self._give_back(self.handed_on.pop())

    def close(self) -> None:
        """Put back everything that the pass has changed. Called where the error is taken, or else at the pass's end."""

    def on_end(self, output: Any) -> None:
        """Called with the output of the model."""

    def learns(self, output: Tensor) -> bool:
        """Return whether anything between the last tap and ``output`` requires a gradient."""
        return output.requires_grad

    @abstractmethod
    def _give_back(self, handed_on: Tensor) -> Tensor:
        """Forget the last tap, which has handed this on, and return its output."""

    @abstractmethod
    def ends(self, output: Tensor) -> Sequence[Sequence[Tensor]]:
        """Return the leaves of every tap's segment; the last segment ends in ``output``, where the error is taken."""

    @abstractmethod
    def connect(self, output: Tensor, handler: ErrorHandler, taps: Sequence[int], *, just_in_time: bool) -> Tensor:
        """Return the output with a graph: its gradient, the error, starts ``handler``'s signals.

        Args:
            output: The tensor at which the error is taken.
            handler: Maps dL/do to one signal for each of ``taps``.
            taps: The numbers of the taps below this error that are cut.
            just_in_time: True if signals are to be made only when their segments are about to run.
        """


class StoredGraphPass(TrainingPass):
    """The plain kind of pass: every segment's graph is kept until one backward pass runs them all.

    Args:
        soft: The calls of taps, by name, whose numbers side terms use.
    """

    def __init__(self, soft: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self._outputs: list[Tensor] = []
        self._soft = soft
        self._soft_taps: list[SoftTap] = []

    @property
    def outputs(self) -> Sequence[Tensor]:
        """The taps' outputs h_l with the graphs of their segments."""
        return self._outputs

    @property
    def soft_taps(self) -> Sequence[SoftTap]:
        """The taps whose numbers side terms use."""
        return self._soft_taps

    def _take(self, output: Tensor) -> Tensor:
        self._outputs.append(output)
        if not (self._soft and self._is_gated()):
            return output.detach()
        handed_on = gated(output)
        self._soft_taps.append(SoftTap.of(handed_on, output))
        return handed_on

    def _let_pass(self, output: Tensor) -> Tensor:
        self._outputs.append(output)
        return output

    def _cut_of_last(self) -> Cut:
        # The output of a tap that side terms use requires a gradient.
        return gated if self._is_gated() else detached

    def _is_gated(self) -> bool:
        """Return whether the last tap has a gate: if nothing below it learns, a side term has no graph either."""
        # What learns may lie below an earlier tap alone, whose cut is then why this output has no graph.
        return self.places[-1] in self._soft and any(output.requires_grad for output in self._outputs)

    def _require_graphs(self) -> None:
        """Raise TapOutputError if a tap's output is a view that was written to: torch has lost its graph then."""
        if torch.compiler.is_compiling():
            return
        for number, output in enumerate(self._outputs):
            if output._version != self.versions[number] and self.is_cut(number) and output._is_view():
                raise TapOutputError(
                    f"the output of tap {self.places[number]!r} is a view, as linear layers make of tokens, and was "
                    "changed in place behind it: its graph is lost then. Write the operation without '_' or "
                    "inplace=True, or tap the module that it is in."
                )

    def _give_back(self, handed_on: Tensor) -> Tensor:
        output = self._outputs.pop()
        self._soft_taps = [tap for tap in self._soft_taps if tap.output is not output]
        return output

    def ends(self, output: Tensor) -> Sequence[Sequence[Tensor]]:
        """Return the leaves that every segment ends in; none for a tap that is not cut."""
        leaves = [Reach.of(root).leaves if self.is_cut(i) else [] for i, root in enumerate(self._outputs)]
        return [*leaves, Reach.of(output).leaves]

    def connect(self, output: Tensor, handler: ErrorHandler, taps: Sequence[int], *, just_in_time: bool) -> Tensor:
        """See :func:`bpfree.mechanisms.autograd.signals_from_error`."""
        self._require_graphs()
        below = [self._outputs[number] for number in taps]
        return signals_from_error(handler, output, below, just_in_time=just_in_time, fetching=self.fetching)

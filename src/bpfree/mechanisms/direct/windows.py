"""Windows: the parameters of a segment learn from a signal further up, carried down by the segments between.

With a window of w, the signal of tap l is taken at tap l + w - 1 and carried down through w - 1 segments by their input
gradients; near the top it is the error itself. All windows take the same step down at once, so a window costs w - 1
passes of input gradients, and no segment waits for more than w - 1 others. 1 is the plain rule; a window as deep as the
network is backpropagation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bpfree.compiled_code import outside_compiled_code
from bpfree.mechanisms.autograd import MakeSignals, gradients_from_error, mark
from bpfree.mechanisms.direct.delivery import ErrorHandler
from bpfree.mechanisms.direct.forward_pass import Cut, StoredGraphPass
from bpfree.rerun.arguments import Arguments
from bpfree.segments import Reach


class WindowedPass(StoredGraphPass):
    """A pass that keeps every segment's graph, and runs it once for each step of a window.

    Args:
        window: The number of segments that a signal is carried through, at least 2.
        arrived: Called with the signals that the segments learn from: one tensor per tap, shaped as the tap's output.
    """

    def __init__(self, window: int, arrived: Callable[[Sequence[Tensor | None]], None]) -> None:
        super().__init__()
        self._window, self._arrived = window, arrived
        # Arguments that require a gradient, by the leaves that stand for them below.
        self._outside: dict[Tensor, Tensor] = {}
        # The tensors that taps hand on: leaves of the segments above.
        self._entries: list[Tensor] = []
        # The tensors that objects among the arguments hold in this pass.
        self._lent: tuple[Arguments, Sequence[Any]] | None = None

    def enter(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the arguments with leaves in place of tensors: the graph below them must not run several times."""
        call = Arguments.of(args, kwargs)
        if not call.outside:
            return None
        flat = list(call.flat)
        for place in call.outside:
            leaf = flat[place].detach().requires_grad_()
            self._outside[leaf], flat[place] = flat[place], mark(leaf)
        self._lent = call, flat
        call.lend(flat)
        return call.put_together(flat)

    def close(self) -> None:
        """Put the original tensors back into the objects among the arguments."""
        if self._lent is not None:
            (call, flat), self._lent = self._lent, None
            call.take_back(flat)

    def _take(self, output: Tensor) -> Tensor:
        entry = super()._take(output)
        self._entries.append(entry)
        if not output.requires_grad:
            return entry
        return mark(entry.requires_grad_())

    def _cut_of_last(self) -> Cut:
        # It hands on a leaf that requires a gradient.
        return _entry

    def _give_back(self) -> Tensor:
        self._entries.pop()
        return super()._give_back()

    @outside_compiled_code
    def connect(self, output: Tensor, handler: ErrorHandler, taps: Sequence[int], *, just_in_time: bool) -> Tensor:
        """Return the output; its backward pass gives every parameter the gradient of its window."""
        below = {id(entry) for entry in self._entries}
        learners = [leaf for leaf in Reach.of(*self.outputs, output).leaves if id(leaf) not in below]
        roots, entries = tuple(self.outputs), tuple(self._entries)
        record = _Record(handler, output, roots, entries, tuple(learners), self._window, self._arrived)
        return gradients_from_error(record.gradients, output, [self._outside.get(leaf, leaf) for leaf in learners])


def _entry(output: Tensor) -> Tensor:
    """Return the leaf with which the segment above begins."""
    entry = output.detach()
    return mark(entry.requires_grad_()) if output.requires_grad else entry


class _Record:
    """One forward pass: the roots of its segments, and the leaves that they end in."""

    def __init__(
        self,
        make: MakeSignals,
        output: Tensor,
        taps: tuple[Tensor, ...],
        entries: tuple[Tensor, ...],
        learners: tuple[Tensor, ...],
        window: int,
        arrived: Callable[[Sequence[Tensor | None]], None],
    ) -> None:
        self._make, self._output, self._taps, self._entries = make, output, taps, entries
        self._learners, self._window, self._arrived = learners, window, arrived

    def gradients(self, error: Tensor) -> Sequence[Tensor | None]:
        """Return one gradient for each leaf that learns, from dL/do."""
        signals = self._make(error)
        carrying = [entry for entry in self._entries if entry.requires_grad]
        for _ in range(self._window - 1):
            # If nothing below the output layer learns, there is nothing to carry.
            carried = iter(self._gradients(signals, error, carrying, again=True) if carrying else ())
            signals = [next(carried) if entry.requires_grad else None for entry in self._entries]
        self._arrived(signals)
        return self._gradients(signals, error, self._learners, again=False)

    def _gradients(
        self, signals: Sequence[Tensor | None], error: Tensor, leaves: Sequence[Tensor], *, again: bool
    ) -> Sequence[Tensor | None]:
        # One call for all segments: they do not touch each other, and autograd runs them at once where it can.
        pairs = zip((*self._taps, self._output), (*signals, error), strict=True)
        given = [(root, signal) for root, signal in pairs if signal is not None and root.requires_grad]
        roots, grads = zip(*given, strict=True)
        return torch.autograd.grad(roots, leaves, grads, retain_graph=again, allow_unused=True)

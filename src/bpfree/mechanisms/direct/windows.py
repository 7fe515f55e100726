"""Windows: the parameters of a segment learn from a signal further up, carried down by the segments between.

With a window of w, the signal of tap l is taken at tap l + w - 1 and carried down through w - 1 segments by their input
gradients; near the top it is the error itself. A window costs w - 1 passes of input gradients, and no segment waits for
more than w - 1 others. 1 is the plain rule; a window as deep as the network is backpropagation.

In a stage of a pipeline the last tap takes the place of the error: a window ends there, and nothing is carried down
from the stage above.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bpfree.compiled_code import outside_compiled_code
from bpfree.mechanisms.autograd import MakeSignals, gradients_from_error, mark
from bpfree.mechanisms.direct.delivery import ErrorHandler
from bpfree.mechanisms.direct.forward_pass import Cut, StoredGraphPass
from bpfree.rerun.arguments import Arguments
from bpfree.segments import Reach, first_overlap


class WindowedPass(StoredGraphPass):
    """A pass that keeps every segment's graph, and runs it once for each step of a window.

    Args:
        window: The number of segments that a signal is carried through, at least 2.
        arrived: Filled with the signals that the segments learn from, one tensor per tap, shaped as the tap's output;
            None keeps none.
        together: All segments run in one call, as FSDP2 needs: it exchanges weights when a backward pass ends.
        is_stage: Windows end at the taps behind which no segment of this process lies.
    """

    def __init__(self, window: int, arrived: list[Tensor | None] | None, *, together: bool, is_stage: bool) -> None:
        super().__init__()
        self._window, self._arrived, self._is_together, self._is_stage = window, arrived, together, is_stage
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

    def _give_back(self, handed_on: Tensor) -> Tensor:
        self._entries.pop()
        return super()._give_back(handed_on)

    @outside_compiled_code
    def connect(self, output: Tensor, handler: ErrorHandler, taps: Sequence[int], *, just_in_time: bool) -> Tensor:
        """Return the output; its backward pass gives every parameter the gradient of its window."""
        record = _Record(
            handler,
            output,
            self.outputs,
            self._entries,
            self._window,
            self._arrived,
            together=self._is_together,
            is_stage=self._is_stage,
        )
        learners = [self._outside.get(leaf, leaf) for leaf in record.learners]
        return gradients_from_error(record.gradients, output, learners)


def _entry(output: Tensor) -> Tensor:
    """Return the leaf with which the segment above begins."""
    entry = output.detach()
    return mark(entry.requires_grad_()) if output.requires_grad else entry


@dataclass
class _Segment:
    """One segment of a pass.

    Attributes:
        root: The tensor that it ends in: a tap's output, or the one where the error is taken.
        own: The leaves that learn.
        entries: The leaves that it begins with, which earlier taps have handed on, by the taps' numbers.
    """

    root: Tensor
    own: list[Tensor]
    entries: dict[int, Tensor]


class _Record:
    """One forward pass: its segments, from the bottom up."""

    def __init__(
        self,
        make: MakeSignals,
        output: Tensor,
        taps: Sequence[Tensor],
        entries: Sequence[Tensor],
        window: int,
        arrived: list[Tensor | None] | None,
        *,
        together: bool,
        is_stage: bool,
    ) -> None:
        self._make, self._arrived = make, arrived
        self._window = min(window, len(taps) + 1)  # signals have come through all segments then
        reaches = [Reach.of(root) for root in (*taps, output)]
        numbers = {id(entry): number for number, entry in enumerate(entries)}
        self._segments: list[_Segment] = []
        for root, reach in zip((*taps, output), reaches, strict=True):
            own = [leaf for leaf in reach.leaves if id(leaf) not in numbers]
            entered = {numbers[id(leaf)]: leaf for leaf in reach.leaves if id(leaf) in numbers}
            self._segments.append(_Segment(root, own, entered))
        self._carrying = {number: entry for number, entry in enumerate(entries) if entry.requires_grad}
        followed = {number for segment in self._segments for number in segment.entries}
        # The taps at which windows end as at the error.
        self._tops = {number for number in range(len(taps)) if is_stage and number not in followed}
        self.learners = list(dict.fromkeys(leaf for segment in self._segments for leaf in segment.own))
        each = sum(len(segment.own) for segment in self._segments)
        # Apart if no leaf is shared, and no path leads around a cut, into a segment further down.
        apart = len(self.learners) == each and first_overlap(reach.inner for reach in reaches) is None
        self._separate = apart and not together

    def gradients(self, error: Tensor) -> Sequence[Tensor | None]:
        """Return one gradient for each leaf that learns, from dL/do."""
        signals = self._make(error)
        return self._from_the_top(signals, error) if self._separate else self._at_once(signals, error)

    def _from_the_top(self, signals: Sequence[Tensor | None], error: Tensor) -> Sequence[Tensor | None]:
        """Run segment after segment, each as often as a signal passes it, and then drop it with its activations.

        Of the signals that are made and carried, only those between two segments are in memory.
        """
        learned: dict[Tensor, Tensor | None] = {}
        self._carrying.clear()
        # For each tap, the signals that have been carried to it through 1, 2, ... segments.
        carried: list[list[Tensor | None]] = [[None] * (self._window - 1) for _ in self._segments[1:]]
        segment, steps = self._segments.pop(), range(self._window - 1)
        learned |= self._learn(segment, error)
        self._carry(segment, error, carried, steps, again=False)
        while self._segments:
            segment, passing = self._segments.pop(), carried.pop()
            if len(self._segments) in self._tops:
                signal = signals[len(self._segments)]
                self._note(signal)
                learned |= self._learn(segment, signal)
                self._carry(segment, signal, carried, steps, again=False)
                continue
            self._note(passing[-1])
            learned |= self._learn(segment, passing.pop())
            # The signal that has come furthest goes first, the tap's own is made last: each is dropped behind its run.
            while segment.entries and passing:
                step = len(passing)
                self._carry(segment, passing.pop(), carried, [step], again=True)
            if segment.entries:
                self._carry(segment, signals[len(self._segments)], carried, [0], again=False)
        return [learned[leaf] for leaf in self.learners]

    def _learn(self, segment: _Segment, signal: Tensor | None) -> dict[Tensor, Tensor | None]:
        """Return the gradients of the leaves of a segment."""
        found = _run(segment.root, segment.own, signal, again=bool(segment.entries))
        return dict(zip(segment.own, found, strict=True))

    def _carry(
        self,
        segment: _Segment,
        signal: Tensor | None,
        carried: list[list[Tensor | None]],
        steps: Sequence[int],
        *,
        again: bool,
    ) -> None:
        """Carry a signal that has passed so many segments (the error: ``steps`` of them) down through this one."""
        found = _run(segment.root, list(segment.entries.values()), signal, again=again)
        for below, gradient in zip(segment.entries, found, strict=True):
            for step in steps:
                carried[below][step] = _sum(carried[below][step], gradient)

    def _at_once(self, signals: Sequence[Tensor | None], error: Tensor) -> Sequence[Tensor | None]:
        """Run all segments together where a path leads around a cut, or a leaf is shared: it gets one gradient."""
        count = len(self._segments) - 1
        for _ in range(self._window - 1):
            # If nothing below the output layer learns, there is nothing to carry.
            found = self._together(signals, error, list(self._carrying.values()), again=True)
            carried = dict(zip(self._carrying, found, strict=True))
            signals = [signals[number] if number in self._tops else carried.get(number) for number in range(count)]
        for signal in reversed(list(signals)):
            self._note(signal)
        return self._together(signals, error, self.learners, again=False)

    def _together(
        self, signals: Sequence[Tensor | None], error: Tensor, leaves: Sequence[Tensor], *, again: bool
    ) -> Sequence[Tensor | None]:
        pairs = zip(self._segments, (*signals, error), strict=True)
        given = [(one.root, signal) for one, signal in pairs if signal is not None and one.root.requires_grad]
        if not leaves:
            return ()
        roots, grads = zip(*given, strict=True)
        return _gradients(roots, leaves, grads, again=again)

    def _note(self, signal: Tensor | None) -> None:
        """Note the signal of a segment, from the top down."""
        if self._arrived is not None:
            self._arrived.insert(0, signal)


def _run(root: Tensor, leaves: Sequence[Tensor], signal: Tensor | None, *, again: bool) -> Sequence[Tensor | None]:
    """Return the gradients that ``signal``, at the end of a segment, gives ``leaves`` that it begins with."""
    if signal is None:
        return [None] * len(leaves)
    return _gradients([root], leaves, [signal], again=again)


def _gradients(
    roots: Sequence[Tensor], leaves: Sequence[Tensor], grads: Sequence[Tensor], *, again: bool
) -> Sequence[Tensor | None]:
    """Return the gradient of each leaf; None for one that has been frozen since the forward pass, as in torch."""
    learning = [leaf for leaf in leaves if leaf.requires_grad]
    if not learning:
        return [None] * len(leaves)
    found = iter(torch.autograd.grad(roots, learning, grads, retain_graph=again, allow_unused=True))
    return [next(found) if leaf.requires_grad else None for leaf in leaves]


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second

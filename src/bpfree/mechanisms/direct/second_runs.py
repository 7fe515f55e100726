"""The reruns of a streaming pass: a dry run that finds the leaves, and a run in which every segment learns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from bpfree.error_values import Path, error_tensors
from bpfree.errors import StreamingError
from bpfree.mechanisms.direct.forward_pass import Cut, TappedPass
from bpfree.mechanisms.direct.segment_leaves import SegmentLeaves
from bpfree.rerun.fingerprint import Fingerprint
from bpfree.rerun.own_graphs import own_graphs
from bpfree.rerun.snapshot import Autocast
from bpfree.segments import Reach


def error_in(output: Any, path: Path) -> Tensor:
    """Return the error in the output at its place, in a second run.

    Raises:
        StreamingError: The first run had a tensor at ``path``, and this one has none.
    """
    found = error_tensors(output)
    if path not in found:
        raise StreamingError(
            f"where the error is taken the second run of the model returned nothing at {path!r}: {_MAY_DEPEND}"
        )
    return found[path]


class DryRun(TappedPass):
    """A rerun that only finds the leaves of every segment.

    Args:
        names: The names of the taps of the first run.
        seen: The fingerprints of their outputs and, last, of the output at the error's place; None to compare nothing.
    """

    def __init__(self, names: tuple[str, ...], seen: Sequence[Fingerprint] | None) -> None:
        super().__init__()
        self._expected, self._seen = names, seen
        self.reaches: list[Reach] = []

    def cut(self, name: str, place: str, output: Tensor) -> Tensor:
        """Cut where the first run did. A tap after the last tap of the first run ends the model and is not cut."""
        number = len(self.names)
        if number == len(self._expected):
            return output
        if name != self._expected[number]:
            raise StreamingError(
                f"the second run of the model reached tap {name!r} where the first one had reached "
                f"{self._expected[number]!r}: {_MAY_DEPEND}"
            )
        self.compare(number, output)
        return super().cut(name, place, output)

    def compare(self, number: int, output: Tensor) -> None:
        """Raise StreamingError if the output of tap ``number``, or of the model, differs from that of the first run."""
        if self._seen is None:
            return
        now, before = Fingerprint.of(output), self._seen[number]
        if before.differs_from(now):
            where = f"at tap {self._expected[number]!r}" if number < len(self._expected) else "where the error is taken"
            raise StreamingError(
                f"{where} the second run of the model gave other numbers than the first one, apart by "
                f"{before.distance(now):.1e} of the largest ({before.tolerance:.1e} is left to rounding): {_MAY_DEPEND}"
            )

    def _take(self, output: Tensor) -> Tensor:
        self.reaches.append(Reach.of(output))
        return output.detach()

    def _let_pass(self, output: Tensor) -> Tensor:
        self.reaches.append(Reach([], set()))  # its segment goes on
        return output


_MAY_DEPEND = (
    "what it computes may depend on its arguments, on random numbers of torch, numpy and Python, and on what its "
    "modules, hooks and arguments keep in attributes, lists, dictionaries and objects. Of iterators, files, clocks, "
    "caches of functions and other libraries' state nothing can be put back: keep that in an attribute, or train "
    "without streaming."
)


class KeepingDryRun(DryRun):
    """A dry run for models that keep or return tensors made of taps' outputs: it finds them by their graph.

    A plain dry run has no graph behind a tap. This one starts a graph at a leaf there. It is not for other models:
    with a leaf there, a rule inside segments does not see that a segment begins.

    Attributes:
        entries: The leaves at which segments begin.
    """

    def __init__(self, names: tuple[str, ...], seen: Sequence[Fingerprint] | None) -> None:
        super().__init__(names, seen)
        self.entries: list[Tensor] = []

    def _take(self, output: Tensor) -> Tensor:
        handed_on = super()._take(output)
        if not output.requires_grad:
            return handed_on
        self.entries.append(handed_on.requires_grad_())
        return handed_on.clone()  # an in-place operation cannot follow the leaf itself

    def _cut_of_last(self) -> Cut:
        # It hands on a leaf that requires a gradient.
        return _entry


def _entry(output: Tensor) -> Tensor:
    return output.detach().requires_grad_(output.requires_grad).clone()


class LearningRun(DryRun):
    """The rerun that learns: every tap sends its signal into its segment.

    Args:
        names: The names of the taps of the first run.
        signals: One signal for each tap that is cut.
        passed: Called with every tap's number and output before the tap's signal is asked for.
        leaves: The leaves of the segments.
        outside: The arguments that require a gradient.
        around: The precisions of the backward pass.
        seen: See :class:`DryRun`.
        shown: Makes the context that segments learn in: everything is as the first run has left it.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        signals: Sequence[Tensor | None],
        passed: Callable[[int, Tensor], None],
        leaves: SegmentLeaves,
        outside: Sequence[Tensor],
        around: Autocast,
        seen: Sequence[Fingerprint] | None,
        shown: Callable[[], AbstractContextManager[None]],
    ) -> None:
        super().__init__(names, seen)
        self._signals, self._passed, self._around, self._shown = signals, passed, around, shown
        self._apart, self._of_segment = [*outside, *leaves.shared], leaves.apart
        self.gradients: list[Tensor | None] = [None] * len(self._apart)
        self._sent = 0

    def _let_pass(self, output: Tensor) -> Tensor:
        with self._around.restored():
            self._passed(len(self.names) - 1, output)
        return output

    def _take(self, output: Tensor) -> Tensor:
        number = len(self.names) - 1
        with self._around.restored():
            self._passed(number, output)
            signal, self._sent = self._signals[self._sent], self._sent + 1
            if signal is not None:
                with self._shown():
                    self.send(number, output, signal)
        return output.detach()

    def send(self, number: int, root: Tensor, signal: Tensor) -> None:
        """Send ``signal`` into the segment that ends in ``root``, and drop its graph."""
        if not root.requires_grad:
            return
        with own_graphs():  # a checkpoint that the run is in does not see what backward functions save
            self._teach(number, root, signal.to(root.dtype))

    def _teach(self, number: int, root: Tensor, given: Tensor) -> None:
        places = self._of_segment[number]
        if not places:
            torch.autograd.backward(root, given)
            return
        apart = [self._apart[place] for place in places]
        known = set(apart)
        alone = [leaf for leaf in Reach.of(root).leaves if leaf not in known]
        found = torch.autograd.grad(root, apart, given, retain_graph=bool(alone), allow_unused=True)
        for place, gradient in zip(places, found, strict=True):
            if gradient is not None:
                before = self.gradients[place]
                self.gradients[place] = gradient if before is None else _sum(before, gradient)
        if alone:
            torch.autograd.backward(root, given, inputs=alone)


def _sum(first: Tensor, second: Tensor) -> Tensor:
    # torch adds a sparse gradient to a dense one, and not the other way round.
    return second + first if first.is_sparse else first + second

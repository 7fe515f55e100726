"""Streaming: no graph is stored; when the error has come, the model runs again and each segment learns at once.

The first run has no graph below the error's place. In the backward pass the model runs a second time, under the same
random numbers, and every tap sends its signal into its segment, whose graph is then dropped: the activations of one
segment are in memory at a time, whatever the depth. With an optimizer that uses gradients as they come
(``register_post_accumulate_grad_hook``) neither all activations nor all gradients ever exist together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from bpfree.errors import StreamingError
from bpfree.mechanisms.autograd import first_order_only, used_record
from bpfree.mechanisms.direct.delivery import ErrorHandler
from bpfree.mechanisms.direct.forward_pass import TappedRun, TrainingPass
from bpfree.mechanisms.no_gradient_warnings import warn_of_results
from bpfree.plan import Plan
from bpfree.rerun.arguments import Call
from bpfree.rerun.fingerprint import Fingerprint
from bpfree.rerun.snapshot import Autocast, RunSnapshot
from bpfree.segments import Reach

Rerun: TypeAlias = Callable[[TappedRun, Any], Tensor]
"""Runs the model on arguments, cut as the other run says, as far as the error's place; returns the output there."""


@dataclass(frozen=True)
class SegmentLeaves:
    """What the segments of one kind of forward pass end in.

    Attributes:
        ends: For every segment its leaves, the output's last.
        shared: The leaves of several segments, or of what lies above the error too. Their gradients are added up before
            they are accumulated, so that hooks and DDP see each of them once.
        apart: For every segment where its leaves are among the arguments that want a gradient and ``shared``.
    """

    ends: Sequence[Sequence[Tensor]]
    shared: Sequence[Tensor]
    apart: Sequence[Sequence[int]]

    @classmethod
    def of(
        cls, names: Sequence[str], reaches: Sequence[Reach], outside: Sequence[Tensor], model: nn.Module
    ) -> SegmentLeaves:
        """Sort the leaves.

        Raises:
            StreamingError: A path leads around a cut.
        """
        _check_cuts([*names, "the output"], reaches)
        counts: dict[Tensor, int] = {}
        for leaf in (leaf for reach in reaches for leaf in reach.leaves):
            counts[leaf] = counts.get(leaf, 0) + 1
        tied = _tied(model)
        shared = [leaf for leaf, count in counts.items() if (count > 1 or leaf in tied) and leaf not in set(outside)]
        places = {leaf: place for place, leaf in enumerate([*outside, *shared])}
        apart = [[places[leaf] for leaf in reach.leaves if leaf in places] for reach in reaches]
        # Without the stand-ins of the arguments: they hold a batch.
        ends = [[leaf for leaf in reach.leaves if leaf not in set(outside)] for reach in reaches]
        return cls(ends, shared, apart)


def kind_of_pass(plan: Plan, names: Sequence[str], outside: Sequence[int]) -> Any:
    """What passes with one course have in common: their taps, the arguments that want a gradient, what learns."""
    return tuple(names), tuple(outside), plan.learning


def _check_cuts(names: Sequence[str], reaches: Sequence[Reach]) -> None:
    seen: set[Any] = set()
    for name, reach in zip(names, reaches, strict=True):
        if not seen.isdisjoint(reach.inner):
            raise StreamingError(
                f"a path leads around the cut below {name!r} (a residual connection past the tap, for example): the "
                "graph of an earlier segment is needed there again. Put the taps where everything passes, such as on "
                "the blocks (taps=...), or train without streaming."
            )
        seen |= reach.inner


def _tied(model: nn.Module) -> set[nn.Parameter]:
    """The parameters of several modules: one of them may lie above the error."""
    seen: set[nn.Parameter] = set()
    tied: set[nn.Parameter] = set()
    for _, parameter in model.named_parameters(remove_duplicate=False):
        (tied if parameter in seen else seen).add(parameter)
    return tied


_GONE = torch.empty(0)


class StreamingPass(TrainingPass):
    """The first run: without a graph below the error's place.

    Args:
        plan: What runs, and where it is cut.
        run: Runs it again.
        call: The arguments of this pass.
        surroundings: What it found when it began.
        courses: What earlier passes have found out about their segments.
        compare: Whether later runs are compared with this one.
        keeps: Whether the model keeps or returns what it has made of taps' outputs.
    """

    def __init__(
        self,
        plan: Plan,
        run: Rerun,
        call: Call,
        surroundings: RunSnapshot,
        courses: dict[Any, SegmentLeaves],
        *,
        compare: bool,
        keeps: bool,
    ) -> None:
        super().__init__()
        self._plan, self._run, self._call = plan, run, call
        self._surroundings, self._courses = surroundings, courses
        self._seen: list[Fingerprint] | None = [] if compare else None
        self._course: SegmentLeaves | None = None
        self._keeps, self._is_off = keeps, False

    def enter(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Let what follows have no graph. Not before: whoever opened the pass must know of it, to close it."""
        self._is_off = True
        torch.set_grad_enabled(False)

    def close(self) -> None:
        """Let what follows have a graph again."""
        if self._is_off:
            self._is_off = False
            torch.set_grad_enabled(True)

    def on_end(self, output: Any) -> None:
        """Warn of what the model returns besides the output that its error comes through."""
        self.handed_on.clear()
        if self._plan.error_name:
            warn_of_results(output, self._call.flat, self._plan.error_name, "streaming=True")

    def cut(self, name: str, place: str, output: Tensor) -> Tensor:
        """Take the output of a tap's call; of all that taps hand on only the last stays: the error may be there."""
        handed_on = super().cut(name, place, output)
        self.handed_on[:-1] = [_GONE] * (len(self.handed_on) - 1)
        return handed_on

    def _take(self, output: Tensor) -> Tensor:
        if self._seen is not None:
            self._seen.append(Fingerprint.of(output))
        return output.detach()

    def uncut(self) -> Tensor:
        """Take the last tap back, and return its output: without a graph, as what it handed on."""
        output = self.handed_on[-1]
        super().uncut()
        if self._seen:
            self._seen.pop()
        return output

    def _give_back(self) -> Tensor:
        return torch.empty(0)

    def ends(self, output: Tensor) -> Sequence[Sequence[Tensor]]:
        """The leaves that every segment ends in."""
        return self._found(output).ends

    def learns(self, output: Tensor) -> bool:
        """Whether anything between the last tap and the error's place wants a gradient."""
        course = self._found(output)
        return bool(course.ends[-1] or course.apart[-1])

    def _found(self, output: Tensor) -> SegmentLeaves:
        """The course of this pass, which ends in ``output``; asked for several times where all taps have passed."""
        if self._course is None:
            if self._seen is not None:
                self._seen.append(Fingerprint.of(output))
            key = kind_of_pass(self._plan, self.names, self._call.outside)
            if key not in self._courses:
                self._courses[key] = self._explored()
            self._course = self._courses[key]
        return self._course

    def _explored(self) -> SegmentLeaves:
        """Run once more with graphs that hold no numbers, to see what the segments end in."""
        walk = (KeepingDryRun if self._keeps else DryRun)(tuple(self.names), self._seen)
        flat, outside = self._call.again()
        with self._surroundings.restored(self._plan.model), saved_tensors_hooks(_drop, _refuse):
            before = {id(tensor) for tensor in self._surroundings.graphs().values()}
            self._call.lend(flat)
            output = self._run(walk, self._call.put_together(flat))
            walk.reaches.append(Reach.of(output))
            walk.compare(len(self.names), output)
            lent = before | set(map(id, outside))
            left = [name for name, kept in self._surroundings.graphs().items() if id(kept) not in lent]
        if left:
            raise _keeps_graphs(left)
        entries = walk.entries if isinstance(walk, KeepingDryRun) else []
        return SegmentLeaves.of(
            self.names, [reach.without(entries) for reach in walk.reaches], outside, self._plan.model
        )

    def connect(self, output: Tensor, handler: ErrorHandler, taps: Sequence[int], *, just_in_time: bool) -> Tensor:
        """The output as it is; in its backward pass the model runs again and its segments learn."""
        course, model = self._found(output), self._plan.model
        second = PendingRerun(tuple(self.names), handler, course, model, self._run, self._surroundings, self._seen)
        outside = [self._call.flat[place] for place in self._call.outside]
        if not outside and not any(second.course.ends):
            return output
        # So that the output has a graph where nothing from outside learns.
        anchor = torch.empty(0, requires_grad=True)
        result: Tensor = Stream.apply(  # type: ignore[no-untyped-call]
            second, self._call, output, anchor, *outside, *second.course.shared
        )
        return result


def _keeps_graphs(names: Sequence[str]) -> StreamingError:
    named = ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return StreamingError(
        f"the forward pass keeps tensors with a graph below the error's place: {named}. Streaming stores no graph, so "
        "that they would have none, and a loss term of them, or the next pass that reads them, would teach nothing. "
        "Train without streaming; or detach() them where they are kept, if they are only looked at or the gradient "
        "through them is not wanted."
    )


def _sum(first: Tensor, second: Tensor) -> Tensor:
    # torch adds a sparse gradient to a dense one, and not the other way round.
    return second + first if first.is_sparse else first + second


def _drop(saved: Tensor) -> None:
    return None


def _refuse(_: None) -> Tensor:
    raise StreamingError("the model asks for gradients in its own forward pass: train it without streaming.")


@dataclass(frozen=True)
class PendingRerun:
    """What a first run leaves for its error.

    Attributes:
        names: The taps that it reached.
        handler: Makes the signals.
        course: What its segments end in.
        model: What runs.
        run: Runs it again.
        surroundings: What the first run found around it.
        seen: What its taps and its output looked like, where this is to be compared.
    """

    names: tuple[str, ...]
    handler: ErrorHandler
    course: SegmentLeaves
    model: nn.Module
    run: Rerun
    surroundings: RunSnapshot
    seen: Sequence[Fingerprint] | None

    def __call__(self, call: Call, error: Tensor) -> Sequence[Tensor | None]:
        """Let every segment learn; the gradients of the arguments that want one, and of the shared leaves."""
        signals = self.handler(error)
        flat, outside = call.again()
        now = Autocast.now(self.surroundings.autocast.kinds)
        passed = partial(self.handler.on_tap_output, error=error)
        replay = LearningRun(self.names, signals, passed, self.course, outside, now, self.seen)
        with self.surroundings.restored(self.model):
            call.lend(flat)
            output = self.run(replay, call.put_together(flat))
        replay.compare(len(self.names), output)
        replay.send(len(self.names), output, error)
        self.handler.on_end(error)
        return replay.gradients


class Stream(torch.autograd.Function):
    """Identity on the output; in backward the model runs again.

    Its other inputs are what gets one gradient from several places: arguments, and parameters of several segments. All
    other parameters accumulate theirs while the model runs.
    """

    @staticmethod
    def forward(ctx: Any, second: PendingRerun, call: Call, output: Tensor, anchor: Tensor, *apart: Tensor) -> Tensor:
        """Return ``output``."""
        ctx.second, ctx.call = second, call
        # Kept by the call. Autograd is asked to watch them: it tells us of a second backward pass, and the user of
        # arguments that were overwritten.
        ctx.save_for_backward(*call.tensors())
        # Not `output` itself: see SignalsFromError.
        return output.detach()

    @staticmethod
    @first_order_only
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Run the model, and return what was added up."""
        try:
            _ = ctx.saved_tensors
        except RuntimeError as freed:
            if "modified by an inplace operation" in str(freed):
                raise
            raise used_record(
                "Run the model again before the next loss.backward(), or pass retain_graph=True to the first."
            ) from freed
        return None, None, None, None, *ctx.second(ctx.call, grads[0])


class DryRun(TappedRun):
    """A run that only looks what every segment ends in.

    Args:
        names: The taps of the first run.
        seen: What their outputs looked like and, last, that at the error's place; None where nothing is compared.
    """

    def __init__(self, names: tuple[str, ...], seen: Sequence[Fingerprint] | None) -> None:
        super().__init__()
        self._expected, self._seen = names, seen
        self.reaches: list[Reach] = []

    def cut(self, name: str, place: str, output: Tensor) -> Tensor:
        """Cut where the first run did; a tap behind its last one ends the model and is none."""
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
        """Raise StreamingError if the output of tap ``number``, or that of the model, is not the first run's."""
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


_MAY_DEPEND = (
    "what it computes may depend on its arguments, on random numbers of torch, numpy and Python, and on what its "
    "modules, hooks and arguments keep in attributes, lists, dictionaries and objects. Of iterators, files, clocks, "
    "caches of functions and other libraries' state nothing can be put back: keep that in an attribute, or train "
    "without streaming."
)


class KeepingDryRun(DryRun):
    """A second run whose graphs lead on behind every tap: what is kept of a tap's output is seen to have one.

    For models that keep such things alone: rules within segments would take what begins behind a tap for no beginning.

    Attributes:
        entries: The leaves that segments begin with.
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


class LearningRun(DryRun):
    """The second run: every tap sends its signal into its segment.

    Args:
        names: The taps of the first run.
        signals: One for each of them.
        passed: Hears of every tap's number and output before its signal is asked for.
        course: What the segments end in.
        outside: The arguments that want a gradient.
        around: The precisions that the backward pass runs in.
        seen: See :class:`DryRun`.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        signals: Sequence[Tensor | None],
        passed: Callable[[int, Tensor], None],
        course: SegmentLeaves,
        outside: Sequence[Tensor],
        around: Autocast,
        seen: Sequence[Fingerprint] | None,
    ) -> None:
        super().__init__(names, seen)
        self._signals, self._passed, self._around = signals, passed, around
        self._apart, self._of_segment = [*outside, *course.shared], course.apart
        self.gradients: list[Tensor | None] = [None] * len(self._apart)

    def _take(self, output: Tensor) -> Tensor:
        number = len(self.names) - 1
        with self._around.restored():
            self._passed(number, output)
            signal = self._signals[number]
            if signal is not None:
                self.send(number, output, signal)
        return output.detach()

    def send(self, number: int, root: Tensor, signal: Tensor) -> None:
        """Send ``signal`` into the segment that ends in ``root``, and drop its graph."""
        if not root.requires_grad:
            return
        with self.learning_segment():
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

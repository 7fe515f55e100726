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
from bpfree.mechanisms.direct.second_runs import DryRun, KeepingDryRun, LearningRun
from bpfree.mechanisms.direct.segment_leaves import SegmentLeaves, kind_of_pass
from bpfree.mechanisms.no_gradient_warnings import warn_of_results
from bpfree.plan import Plan
from bpfree.rerun.arguments import Arguments
from bpfree.rerun.fingerprint import Fingerprint
from bpfree.rerun.own_graphs import own_graphs
from bpfree.rerun.snapshot import Autocast, RunSnapshot
from bpfree.segments import Reach

Rerun: TypeAlias = Callable[[TappedRun, Any], Tensor]
"""Runs the model on arguments, cut as the other run says, as far as the error's place; returns the output there."""


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
        call: Arguments,
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
        restored = self._surroundings.restored(self._plan.model)
        with restored, own_graphs(), saved_tensors_hooks(_drop, refuse_gradients):
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


def _drop(saved: Tensor) -> None:
    return None


def refuse_gradients(_: None) -> Tensor:
    """Raise StreamingError: the graph that is asked for numbers holds none."""
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

    def __call__(self, call: Arguments, error: Tensor) -> Sequence[Tensor | None]:
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
    def forward(
        ctx: Any, second: PendingRerun, call: Arguments, output: Tensor, anchor: Tensor, *apart: Tensor
    ) -> Tensor:
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

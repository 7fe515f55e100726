"""Streaming: no graph is stored; when the error has come, the model runs again and each segment learns at once.

The first run has no graph below the error's place. In the backward pass the model runs a second time, under the same
random numbers, and every tap sends its signal into its segment, whose graph is then dropped: the activations of one
segment are in memory at a time, whatever the depth. With an optimizer that uses gradients as they come
(``register_post_accumulate_grad_hook``) neither all activations nor all gradients ever exist together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from bpfree.error_values import Path
from bpfree.errors import StreamingError
from bpfree.mechanisms.autograd import first_order_only, require_unused
from bpfree.mechanisms.direct.delivery import ErrorHandler
from bpfree.mechanisms.direct.forward_pass import TappedPass, TrainingPass
from bpfree.mechanisms.direct.second_runs import DryRun, KeepingDryRun, LearningRun, error_in
from bpfree.mechanisms.direct.segment_leaves import SegmentLeaves, kind_of_pass
from bpfree.mechanisms.function_transforms import refuse_batched_errors
from bpfree.plan import Plan
from bpfree.rerun.arguments import Arguments
from bpfree.rerun.fingerprint import Fingerprint
from bpfree.rerun.own_graphs import own_graphs
from bpfree.rerun.saved_tensors import forbids_hooks, hooked_saved_tensors
from bpfree.rerun.snapshot import Autocast, RunSnapshot
from bpfree.segments import Reach

Rerun: TypeAlias = Callable[[TappedPass, Any], Any]
"""Runs the model on arguments as far as the error's place, cut by the given pass; returns the output there."""


_GONE = torch.empty(0)


class StreamingPass(TrainingPass):
    """The first run: without a graph below the error's place.

    Args:
        plan: The model and its taps.
        run: Runs the model again.
        call: The arguments of this pass.
        snapshot: The state in which the pass began.
        known: The leaves of segments that earlier passes have found, by kind of pass.
        compare: True if reruns are compared with this run.
        keeps: True if the model keeps or returns tensors that it has made of taps' outputs.
    """

    stores_graph = False
    has_graph = False

    def __init__(
        self,
        plan: Plan,
        run: Rerun,
        call: Arguments,
        snapshot: RunSnapshot,
        known: dict[Any, SegmentLeaves],
        *,
        compare: bool,
        keeps: bool,
    ) -> None:
        super().__init__()
        self._plan, self._run, self._call = plan, run, call
        self._snapshot, self._known = snapshot, known
        self._seen: list[Fingerprint] | None = [] if compare else None
        self._leaves: SegmentLeaves | None = None
        self._keeps, self._is_off = keeps, False

    def enter(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Switch gradients off. Not earlier: the caller must know this pass, to be able to close it."""
        self._is_off = True
        torch.set_grad_enabled(False)

    def close(self) -> None:
        """Switch gradients on again."""
        if self._is_off:
            self._is_off = False
            torch.set_grad_enabled(True)

    def on_end(self, output: Any) -> None:
        """Drop the last tap's output."""
        self.handed_on.clear()

    def cut(self, name: str, place: str, output: Tensor) -> Tensor:
        """Take the output of a tap's call. Only the last output is kept: the error may be taken there."""
        handed_on = super().cut(name, place, output)
        if len(self.handed_on) > 1:
            self.handed_on[-2] = _GONE
        return handed_on

    def _take(self, output: Tensor) -> Tensor:
        if self._seen is not None:
            self._seen.append(Fingerprint.of(output))
        return output.detach()

    def _let_pass(self, output: Tensor) -> Tensor:
        return self._take(output)  # there is no graph that could go on

    def _give_back(self, handed_on: Tensor) -> Tensor:
        if self._seen:
            self._seen.pop()
        return handed_on  # neither has a graph

    def ends(self, output: Tensor) -> Sequence[Sequence[Tensor]]:
        """Return the leaves that every segment ends in."""
        return self._found(output).ends

    def learns(self, output: Tensor) -> bool:
        """Return whether anything between the last tap and the error's place requires a gradient."""
        leaves = self._found(output)
        return bool(leaves.ends[-1] or leaves.apart[-1])

    def _found(self, output: Tensor) -> SegmentLeaves:
        """Return the leaves of this pass, which ends in ``output``. Call it only after all taps."""
        if self._leaves is None:
            if self._seen is not None:
                self._seen.append(Fingerprint.of(output))
            key = kind_of_pass(self._plan, self.names, self._call.outside, self.phase)
            if key not in self._known:
                self._known[key] = self._found_in_dry_run()
            self._leaves = self._known[key]
        return self._leaves

    def _found_in_dry_run(self) -> SegmentLeaves:
        """Find the leaves of the segments in one more run, with graphs that hold no numbers."""
        dry_run = (KeepingDryRun if self._keeps else DryRun)(tuple(self.names), self._seen)
        flat, outside = self._call.again()
        restored = self._snapshot.restored(self._plan.model)
        with restored, own_graphs(), hooked_saved_tensors(_drop, refuse_gradients):
            before = {id(tensor) for tensor in self._snapshot.graphs().values()}
            self._call.lend(flat)
            try:
                output = error_in(self._run(dry_run, self._call.put_together(flat)), self.error_path)
            except RuntimeError as error:
                if forbids_hooks(error):
                    raise transforms_in_stream() from error
                raise
            dry_run.reaches.append(Reach.of(output))
            dry_run.compare(len(self.names), output)
            lent = before | set(map(id, outside))
            left = [name for name, kept in self._snapshot.graphs().items() if id(kept) not in lent]
        if left:
            raise keeps_graphs(left)
        entries = dry_run.entries if isinstance(dry_run, KeepingDryRun) else []
        return SegmentLeaves.of(
            self.names, [reach.without(entries) for reach in dry_run.reaches], outside, self._plan.model
        )

    def connect(self, output: Tensor, handler: ErrorHandler, taps: Sequence[int], *, just_in_time: bool) -> Tensor:
        """Return the output; in its backward pass the model runs again and its segments learn."""
        leaves, model = self._found(output), self._plan.model
        rerun = PendingRerun(
            tuple(self.names), self.error_path, handler, leaves, model, self._run, self._snapshot, self._seen
        )
        outside = [self._call.flat[place] for place in self._call.outside]
        if not outside and not any(leaves.ends):
            return output
        # Gives the output a graph if no argument requires a gradient.
        anchor = torch.empty(0, requires_grad=True)
        result: Tensor = Stream.apply(  # type: ignore[no-untyped-call]
            rerun, self._call, output, anchor, *outside, *leaves.shared
        )
        return result


def keeps_graphs(names: Sequence[str]) -> StreamingError:
    """Make the error for tensors of these names, whose graphs a streaming pass does not have."""
    named = ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return StreamingError(
        f"the forward pass keeps tensors with a graph below the error's place: {named}. Streaming stores no graph, so "
        "that they would have none, and a loss term of them, or the next pass that reads them, would teach nothing. "
        "Train without streaming; or detach() them where they are kept, if they are only looked at or the gradient "
        "through them is not wanted."
    )


def transforms_in_stream() -> StreamingError:
    """Make the error for a model with transforms of torch.func, in which torch takes no hooks on saved tensors."""
    return StreamingError(
        "the model uses a transform of torch.func (grad, vjp, jacrev) in its own forward pass, and torch lets nobody "
        "leave out there what a graph would store: train it without streaming."
    )


def _drop(saved: Tensor) -> None:
    return None


def refuse_gradients(_: None) -> Tensor:
    """Raise StreamingError: the graph holds no numbers from which a gradient could be computed."""
    raise StreamingError("the model asks for gradients in its own forward pass: train it without streaming.")


@dataclass(frozen=True)
class PendingRerun:
    """The rerun that a first run leaves for its error.

    Attributes:
        names: The taps that the first run reached.
        path: Where the error is in the output at its place.
        handler: Makes the signals.
        leaves: The leaves of its segments.
        model: The model.
        run: Runs the model again.
        snapshot: The state in which the first run began.
        seen: The fingerprints of its taps and its output, if the rerun is to be compared; else None.
    """

    names: tuple[str, ...]
    path: Path
    handler: ErrorHandler
    leaves: SegmentLeaves
    model: nn.Module
    run: Rerun
    snapshot: RunSnapshot
    seen: Sequence[Fingerprint] | None

    def __call__(self, call: Arguments, error: Tensor) -> Sequence[Tensor | None]:
        """Let every segment learn; return the gradients of the arguments that require one, and of the shared leaves."""
        signals = self.handler(error)
        flat, outside = call.again()
        now = Autocast.now(self.snapshot.autocast.kinds)
        passed = partial(self.handler.on_tap_output, error=error)
        with self.snapshot.restored(self.model) as left:
            # What a pass has not moved in its first run is not looked at in the next ones: that takes time.
            shown = left.shown if self.seen is not None or self.snapshot.has_gradient_hooks else nullcontext
            rerun = LearningRun(self.names, signals, passed, self.leaves, outside, now, self.seen, shown)
            call.lend(flat)
            output = error_in(self.run(rerun, call.put_together(flat)), self.path)
        rerun.compare(len(self.names), output)
        rerun.send(len(self.names), output, error)
        self.handler.on_end(error)
        return rerun.gradients


class Stream(torch.autograd.Function):
    """Identity on the output; in backward the model runs again.

    Its other inputs are tensors that get one gradient from several places: arguments, and parameters of several
    segments. All other parameters accumulate their gradients while the model runs.
    """

    @staticmethod
    def forward(
        ctx: Any, second: PendingRerun, call: Arguments, output: Tensor, anchor: Tensor, *apart: Tensor
    ) -> Tensor:
        """Return ``output``."""
        ctx.second, ctx.call = second, call
        # The call holds these tensors anyway. Saved with autograd, they show us a second backward pass, and raise an
        # error if the user has overwritten an argument.
        ctx.save_for_backward(*call.tensors())
        # Not `output` itself: see SignalsFromError.
        return output.detach()

    @staticmethod
    @first_order_only
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Run the model again, and return the gradients that were added up."""
        require_unused(ctx)
        refuse_batched_errors(grads[0])
        return None, None, None, None, *ctx.second(ctx.call, grads[0])

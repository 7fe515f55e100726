"""The mechanism of the direct rules: the graph is cut at every tap, and the error sends each its signal.

A forward hook at a tap takes the output h, with the graph of its own segment, and hands on ``h.detach()``, which
requires no gradient, so that autograd never forms W^T delta. What becomes of h, and on which way its signal reaches it,
is up to the :class:`bpfree.mechanisms.passage.Passage`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bpfree.errors import (
    BpfreeWarning,
    ErrorPlacementError,
    StateError,
    StreamingError,
    TapOutputError,
    TapSelectionError,
)
from bpfree.feedback import Feedback
from bpfree.layout import batch_dims, sites_of
from bpfree.mechanisms.base import Mechanism, Rule, not_a_tensor, not_reached, reached_twice, running_again
from bpfree.mechanisms.delivery import Delivery, Dispatch, Layout, Pending
from bpfree.mechanisms.passage import Passage, Run
from bpfree.mechanisms.ways import Ways
from bpfree.plan import Plan
from bpfree.projection import Projection, Projector, projection
from bpfree.segments import Segments
from bpfree.state import name_of
from bpfree.taps import Site, product


@dataclass(frozen=True)
class DirectRule(Rule):
    """A rule that gives every tap a signal at once, without the weights between the tap and the output.

    A rule of your own overrides :meth:`vector` (what is projected) or, for anything else, :meth:`signals`.

    Args:
        feedback: How the feedback matrices are drawn, or any callable projector ``(error, sites) -> signals``; None
            projects nothing.
    """

    feedback: Feedback | Projector | None = field(default_factory=Feedback, kw_only=True)

    def mechanism(self, plan: Plan) -> Mechanism:
        """Cut the graph at every tap and broadcast the error."""
        return DirectMechanism(self, plan)

    @property
    def needs_error(self) -> bool:
        """Whether signals depend on the error; where they do not, streaming sends them in the forward pass."""
        return True

    def vector(self, delivery: Delivery) -> Tensor:
        """The vector ``(N, c)`` that is projected; the error itself unless a rule says otherwise."""
        return delivery.error

    def signals(self, delivery: Delivery) -> Sequence[Tensor | None]:
        """One teaching signal ``(N, n_l)`` a tap, in the order of ``delivery.sites``; None trains nothing there."""
        return delivery.project(self.vector(delivery), delivery.sites)


class _Reached(Exception):  # noqa: N818 - not an error: what lies above error_at need not run again
    def __init__(self, output: Tensor) -> None:
        self.output = output


class DirectMechanism(Mechanism):
    """Hooks, forward record and feedback of one direct rule on one model.

    Attributes:
        sites: The taps that the last forward pass reached.
        ways: Which ways forward passes go.
    """

    rule: DirectRule

    def __init__(self, rule: DirectRule, plan: Plan) -> None:
        super().__init__(rule, plan)
        if not plan.taps and not plan.part:
            raise TapSelectionError(
                "the model has no non-linearity modules to tap. Name the taps (taps=...), or put bpfree.Tap() "
                "modules into the model after its functional non-linearities."
            )
        self.feedback = projection(rule.feedback, plan.seed)
        self.sites: tuple[Site, ...] = ()
        self._segments: dict[Any, Segments] = {}
        self._shown: Segments | None = None
        self.ways = Ways(plan, self._again)
        self._layout: Layout | None = None
        self._run: Run | None = None
        # How the last pass was cut; None where it was not.
        self._recut: Callable[[Tensor], Tensor] | None = None
        self._rerunning = False
        self._inside = self._told = False
        self._counts = self._ungraded = False
        self._targets: Tensor | None = None

    # -- hooks ---------------------------------------------------------------------------------------------------

    def install(self) -> None:
        """Put hooks on the model, on every tap and on the module where the error is taken."""
        # Bound methods and partials of them: a deep copy of the model then has a deep copy of the rule.
        plan = self.plan
        add = self._handles.append
        if self.ways.attentive:
            # Before what other hooks make of the arguments: in a second run they do so again.
            add(plan.model.register_forward_pre_hook(self._hear, prepend=True, with_kwargs=True))
        add(plan.model.register_forward_pre_hook(self._enter, with_kwargs=True))
        for name, module in plan.taps.items():
            if module is not plan.error_module:
                add(module.register_forward_hook(partial(self._cut, name)))
        add(plan.error_module.register_forward_hook(self._leave))
        add(plan.model.register_forward_hook(self._end, always_call=True))

    def remove(self) -> None:
        """Take the hooks out and forget the forward pass and its targets."""
        super().remove()
        self._abandon()
        self.ways.forget()
        self._targets = None

    def _hear(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if not self._rerunning and self.active:
            self.ways.hear(args, kwargs)

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if self._rerunning:
            return None
        self._abandon()  # a pass that was interrupted from the keyboard
        self._inside = True
        # The second run of a checkpoint is no training pass of its own, unless the first one had no gradients.
        again = self.recomputing()
        self._counts = self.active and (not again or self._ungraded)
        if not again:
            self._ungraded = not self.active
        if self.active:
            ready = not self.rule.needs_error and self._targets is not None
            self._run = self.ways.open(self._layout, self._dispatch if ready else None)
        self._begin((args, kwargs))
        if self.active and not torch.compiler.is_compiling():
            self._recut = self._run.recut if isinstance(self._run, Passage) else None
        return self._run.enter(args, kwargs) if isinstance(self._run, Passage) else None

    def _abandon(self) -> None:
        """Let the pass under way be plain autograd."""
        if isinstance(self._run, Passage):
            self._run.close()
        self._run = None

    @contextmanager
    def stored(self) -> Generator[None]:
        """Within this context a pass stores its graph and leaves it to autograd, for whoever looks into it."""
        targets = self._targets
        try:
            with self.ways.stored():
                yield
        finally:
            self._targets = targets

    def _again(self, run: Run, call: Any) -> Tensor:
        """Run the model on (args, kwargs) as far as the error's place, cut as ``run`` says; return the output there."""
        if not self._handles:
            raise StreamingError(
                "the rule was detached between the model and loss.backward(), which under streaming runs the model "
                "again: detach behind it."
            )
        before, self._run, self._rerunning = self._run, run, True
        args, kwargs = call
        try:
            with running_again():
                self.plan.model(*args, **kwargs)
        except _Reached as reached:
            return reached.output
        finally:
            self._run, self._rerunning = before, False
        raise not_reached(self.plan)

    def _begin(self, call: Any) -> None:
        """Make ready for the forward pass ``_run`` on ``call``, (args, kwargs); None is a pass not of the rule's."""

    def _cut(self, name: str, module: nn.Module, args: Any, output: Any) -> Tensor | None:
        run = self._run
        if run is None:
            return self._outside_a_pass(name, output)
        if isinstance(run, Passage) and run.left:
            self._above_error(name)
            return None
        _require_floating(output, name)
        return run.again(name, output) if run.teaching else run.cut(name, output)

    def _outside_a_pass(self, name: str, output: Any) -> Tensor | None:
        if self._inside or not self.active:
            return None
        if self.recomputing():
            # A checkpointed segment must be cut again, or it would save other tensors than the first time.
            return self._recut(output) if self._recut else None
        if not self._told:
            self._told = True
            warnings.warn(
                f"tap {name!r} was reached without the model that {self.rule} is attached to: a part of the model was "
                "called alone, and trains by plain backpropagation. Call the model itself, attach the rule to that "
                "part, or say attachment.paused() where this is meant.",
                BpfreeWarning,
                stacklevel=2,
            )
        return None

    def _above_error(self, name: str) -> None:
        # Default taps above error_at are left alone: what lies there is exact.
        if self.plan.explicit:
            raise ErrorPlacementError(
                f"tap {name!r} was reached after error_at={self.plan.error_name!r}. What lies above error_at is "
                "trained exactly and cannot hold a tap: leave that tap out, or take the error further up."
            )

    def _leave(self, module: nn.Module, args: Any, output: Any) -> Tensor | None:
        if self._rerunning:
            raise _Reached(output)
        passage = self._run
        if not isinstance(passage, Passage):
            return None
        # Whatever is wrong is said once: _end runs although this raises.
        reached, passage.left = passage.left, True
        passage.close()
        if not isinstance(output, Tensor) or not output.is_floating_point():
            raise not_a_tensor(self.plan, output)
        if reached:
            raise reached_twice(self.plan)
        left = self._broadcast(passage, output)
        # Of a stage where nothing learns the others still want the error.
        return left.detach().requires_grad_() if self.plan.part and not left.requires_grad else left

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._rerunning:
            return
        self._inside = False
        passage, self._run = self._run, None
        if not isinstance(passage, Passage):
            return
        passage.close()
        if output is None:  # the forward pass raised: that error goes to the user, not ours
            return
        if not passage.left:
            raise not_reached(self.plan)
        passage.ended(output)

    # -- the error -------------------------------------------------------------------------------------------------

    def _broadcast(self, passage: Passage, output: Tensor) -> Tensor:
        if passage.ends_the_model(output):
            # The model ends in a tap (a final sigmoid, say): the error itself is that tap's exact gradient.
            output = passage.uncut()
        if not passage.names:
            if self.plan.part:
                return output
            raise ErrorPlacementError(
                f"no tap was reached before {self.plan.where}. Name taps that the forward pass runs through below it."
            )
        if not passage.learns(output) and not self._frozen_behind(passage.names[-1]):
            raise ErrorPlacementError(
                f"nothing that learns lies between the last tap, {passage.names[-1]!r}, and {self.plan.where}: the tap "
                "would cut the output layer off from its exact gradient. Leave that tap out."
            )
        layout = self._laid_out(passage, output)
        return passage.leave(output, self._dispatch(layout, passage.outputs), just_in_time=layout.just_in_time)

    def _frozen_behind(self, tap: str) -> bool:
        """Whether parameters registered behind a tap are not to learn: the output layer's, most probably."""
        modules = iter(self.plan.model.named_modules())
        for name, _ in modules:
            if name == tap:
                break
        return any(not p.requires_grad for _, module in modules for p in module.parameters(recurse=False))

    def _laid_out(self, passage: Passage, output: Tensor) -> Layout:
        """The layout of this forward pass; found once for passes of the same shapes."""
        compiling = torch.compiler.is_compiling()
        learners = () if compiling else self.plan.learning
        taps = (tuple(passage.names), passage.shapes, passage.formats)
        key = (output.shape, output.dtype, output.device, *taps, learners)
        if not compiling and self._layout is not None and key == self._layout.key:
            return self._layout
        dims = batch_dims(output.shape, passage.shapes, self.plan.batch_dims)
        sites = sites_of(passage.names, passage.shapes, dims, output.shape)
        kind = (tuple(passage.names), learners)
        if not compiling:
            if kind not in self._segments:
                self._segments[kind] = Segments.of(self.plan, sites, passage.ends(output))
            self._shown = self._segments[kind]
        # One signal for all taps is made at once. A compiled graph cannot hold hooks on tensors inside it.
        several = isinstance(self.feedback, Projection) and self.feedback.kinds(sites) > 1
        just_in_time = not compiling and self.plan.window == 1 and (several or self.plan.streaming)
        like = _weights_like(self.plan.model, output)
        layout = Layout(key, sites, tuple(passage.formats), product(output.shape[dims:]), just_in_time, like)
        self.sites = sites
        if not compiling:  # a compiled pass has a layout of its own: it delivers in another way
            self._layout = layout
        return layout

    def _dispatch(self, layout: Layout, outputs: Sequence[Tensor] = ()) -> Dispatch:
        self.feedback.prepare(layout.sites, layout.c, layout.like)
        pending = self._begun(layout, outputs)
        # A recomputed pass must not take what was given for the backward pass under way.
        targets = None if self.recomputing() else self.take_targets()
        return Dispatch(self, layout, pending, targets)

    def take_targets(self) -> Tensor | None:
        """The targets that were given and not used, which then are."""
        targets, self._targets = self._targets, None
        return targets

    def _begun(self, layout: Layout, outputs: Sequence[Tensor]) -> Pending:
        """What this forward pass leaves for its error; mechanisms that learn add to it."""
        return Pending(layout.sites)

    def passed(self, pending: Pending, number: int, output: Tensor, error: Tensor) -> None:
        """Hear of the output of tap ``number`` where it was not there before the error ``(N, c)``."""

    def learn(self, pending: Pending, error: Tensor) -> None:
        """Let the feedback learn, before it projects the error ``(N, c)``; fixed feedback does not."""

    def targets(self, targets: Tensor) -> None:
        """Keep the targets of the next (or the current) forward pass for its backward pass."""
        if not self._pauses:
            self._targets = targets

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        if isinstance(self.feedback, Projection) and not self.feedback.feedback.shared:
            start = f"{prefix}feedback."
            saved = {name_of(key.removeprefix(start)) for key in state_dict if key.startswith(start)}
            # A matrix is kept under its tap's name, most with the width behind it.
            taps = {name.rpartition(":")[0] or name for name in saved - self.feedback.numbers.keys()}
            unknown = taps - self.plan.taps.keys()
            if unknown:
                raise StateError(f"the state is for taps that this model does not have: {', '.join(sorted(unknown))}.")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    # -- what it looks like ----------------------------------------------------------------------------------------

    def table(self) -> tuple[list[str], list[list[str]], list[str]]:
        """A row for each tap: its shape, its feedback, and the layers that learn from its signal."""
        segments = self._shown
        if segments is None:
            names = ", ".join(self.plan.taps)
            later = "Shapes are known after the first forward pass (or with example_inputs=)."
            return [], [], [f"taps: {names}", later]
        header = ["tap", "shape", "feedback", "learns from it"]
        *below, above = segments.learners
        rows = [
            [site.name, "x".join(map(str, ("N", *site.features))), self.feedback.describe(site), layers]
            for site, layers in zip(self.sites, below, strict=True)
        ]
        rows.append([self.plan.error_name or "(output)", "", "exact gradient", above])
        return header, rows, [*self.ways.describe(), *segments.remarks]


def _require_floating(output: Any, name: str) -> None:
    if not isinstance(output, Tensor) or not output.is_floating_point():
        found = f"a tensor of {output.dtype}" if isinstance(output, Tensor) else f"of type {type(output).__name__}"
        raise TapOutputError(
            f"the output of tap {name!r} is {found}; a tap needs one floating point tensor. Choose a module inside "
            "it, or put a bpfree.Tap() where the tensor is."
        )


def _weights_like(model: nn.Module, output: Tensor) -> Tensor:
    """An empty tensor with the precision of the model's weights on the device of its output."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            return torch.empty(0, dtype=parameter.dtype, device=output.device)
    return output.new_empty(0)

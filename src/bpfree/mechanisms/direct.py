"""The mechanism of the direct rules: the graph is cut at every tap, and one function hands each its signal.

A forward hook at a tap keeps the output h, with the graph of its own segment, and hands on ``h.detach()``, which
requires no gradient, so that autograd never forms W^T delta. At ``error_at`` the output passes through
:class:`bpfree.mechanisms.broadcast.Broadcast` together with every kept h.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bpfree.errors import ErrorPlacementError, TapOutputError, TapSelectionError
from bpfree.feedback import Feedback, Projection, Projector, Signals, projection
from bpfree.layout import batch_dims, sites_of
from bpfree.mechanisms.base import Mechanism, Rule, require_finite
from bpfree.mechanisms.broadcast import broadcast
from bpfree.mechanisms.windows import Entry, windowed
from bpfree.plan import Plan
from bpfree.segments import Segments
from bpfree.taps import Site, product

if TYPE_CHECKING:
    from collections.abc import Callable

    from bpfree.estimate import Observation


@dataclass(frozen=True)
class Delivery:
    """What a direct rule knows when the error leaves the network.

    Attributes:
        error: e, shape ``(N, c)``: dL/do as autograd delivers it, one row a sample (token, node).
        sites: The taps that were reached, in forward order.
        targets: What ``attachment.targets(...)`` was given for this pass, or None.
        project: Maps a vector ``(N, c)`` to one signal ``(N, n_l)`` a tap through the rule's feedback.
        observation: What the estimating pass saw, for rules that ask for one (:mod:`bpfree.estimate`).
    """

    error: Tensor
    sites: Sequence[Site]
    targets: Tensor | None
    project: Projector
    observation: Observation | None = None


@dataclass
class Pending:
    """What a mechanism has from one forward pass when its error arrives.

    Attributes:
        sites: The taps that were reached.
        outputs: Their outputs h, where the mechanism asked for them.
        observation: What an estimating pass saw.
        evidence: What the feedback learns from.
    """

    sites: Sequence[Site]
    outputs: Sequence[Tensor] = ()
    observation: Observation | None = None
    evidence: dict[str, Tensor] = field(default_factory=dict)


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

    def vector(self, delivery: Delivery) -> Tensor:
        """The vector ``(N, c)`` that is projected; the error itself unless a rule says otherwise."""
        return delivery.error

    def signals(self, delivery: Delivery) -> Sequence[Tensor | None]:
        """One teaching signal ``(N, n_l)`` a tap, in the order of ``delivery.sites``; None trains nothing there."""
        return delivery.project(self.vector(delivery), delivery.sites)


@dataclass
class _Record:
    """One forward pass under way: the taps reached so far."""

    names: list[str] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    entries: list[Tensor] = field(default_factory=list)
    handed_on: Tensor | None = None
    broadcast: bool = False


@dataclass(frozen=True)
class Layout:
    """What a forward pass of certain names and shapes (``key``) looks like."""

    key: Any
    sites: tuple[Site, ...]
    c: int
    just_in_time: bool
    like: Tensor


class DirectMechanism(Mechanism):
    """Hooks, forward record and feedback of one direct rule on one model.

    Attributes:
        sites: The taps that the last forward pass reached.
        segments: What lies between them, once known.
        carried: With a window, what the taps' segments learned from in the last backward pass, while fixed.
    """

    rule: DirectRule

    def __init__(self, rule: DirectRule, plan: Plan) -> None:
        super().__init__(rule, plan)
        if not plan.taps:
            raise TapSelectionError(
                "the model has no non-linearity modules to tap. Name the taps (taps=...), or put bpfree.Tap() "
                "modules into the model after its functional non-linearities."
            )
        self.feedback = projection(rule.feedback, plan.seed)
        self.sites: tuple[Site, ...] = ()
        self.segments: Segments | None = None
        self.carried: list[Tensor | None] = []
        self._layout: Layout | None = None
        self._record: _Record | None = None
        self._targets: Tensor | None = None

    # -- hooks ---------------------------------------------------------------------------------------------------

    def install(self) -> None:
        """Put hooks on the model, on every tap and on the module where the error is taken."""
        # Bound methods and partials of them: a deep copy of the model then has a deep copy of the rule.
        plan = self.plan
        add = self._handles.append
        add(plan.model.register_forward_pre_hook(self._begin))
        for name, module in plan.taps.items():
            if module is not plan.error_module:
                add(module.register_forward_hook(partial(self._cut, name)))
        add(plan.error_module.register_forward_hook(self._leave))
        add(plan.model.register_forward_hook(self._end, always_call=True))

    def remove(self) -> None:
        """Take the hooks out and forget the forward pass and its targets."""
        super().remove()
        self._record = self._targets = None

    def _begin(self, module: nn.Module, args: Any) -> None:
        self._record = _Record() if self.active else None

    def _cut(self, name: str, module: nn.Module, args: Any, output: Any) -> Tensor | None:
        record = self._record
        if record is None:
            # A checkpointed segment must be cut again, or it would save other tensors than the first time.
            return output.detach() if self.active and self.recomputing() else None
        if record.broadcast:
            self._above_error(name)
            return None
        _require_floating(output, name)
        record.handed_on = entry = output.detach()
        if self.plan.window > 1 and output.requires_grad:
            record.handed_on = Entry.apply(entry.requires_grad_())  # type: ignore[no-untyped-call]
        record.names.append(name)
        record.outputs.append(output)
        record.entries.append(entry)
        return record.handed_on

    def _above_error(self, name: str) -> None:
        # Default taps above error_at are left alone: what lies there is exact.
        if self.plan.explicit:
            raise ErrorPlacementError(
                f"tap {name!r} was reached after error_at={self.plan.error_name!r}. What lies above error_at is "
                "trained exactly and cannot hold a tap: leave that tap out, or take the error further up."
            )

    def _leave(self, module: nn.Module, args: Any, output: Any) -> Tensor | None:
        record = self._record
        if record is None:
            return None
        where = repr(self.plan.error_name) if self.plan.error_name else "the model's output"
        # Whatever is wrong is said once: _end runs although this raises.
        reached, record.broadcast = record.broadcast, True
        if not isinstance(output, Tensor):
            raise ErrorPlacementError(
                f"the error is taken at {where}, which is of type {type(output).__name__}, not one tensor. Name a "
                "module whose output is one tensor: error_at='head', for example."
            )
        if reached:
            raise ErrorPlacementError(f"error_at: {where} was reached twice in one forward pass.")
        return self._broadcast(record, output, where)

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        record, self._record = self._record, None
        # `output` is None when the forward pass raised: that error goes to the user, not ours.
        if record is not None and not record.broadcast and output is not None:
            raise ErrorPlacementError(
                f"error_at={self.plan.error_name!r} was not reached in this forward pass, so no tap can learn. Name "
                "a module that every training pass runs through."
            )

    # -- the error -------------------------------------------------------------------------------------------------

    def _broadcast(self, record: _Record, output: Tensor, where: str) -> Tensor:
        if output is record.handed_on:
            # The model ends in a tap (a final sigmoid, say): the error itself is that tap's exact gradient.
            record.names.pop()
            record.entries.pop()
            output = record.outputs.pop()
        if not record.outputs:
            raise ErrorPlacementError(
                f"no tap was reached before {where}. Name taps that the forward pass runs through below it."
            )
        if not output.requires_grad:
            raise ErrorPlacementError(
                f"nothing that learns lies between the last tap, {record.names[-1]!r}, and {where}: the tap would "
                "cut the output layer off from its exact gradient. Leave that tap out."
            )
        layout = self._laid_out(record, output)
        deliver = self._prepare(layout, record.outputs)
        if self.plan.window > 1:
            return windowed(deliver, output, record.outputs, record.entries, self.plan.window, self._arrived)
        return broadcast(deliver, output, record.outputs, just_in_time=layout.just_in_time)

    def _laid_out(self, record: _Record, output: Tensor) -> Layout:
        """The layout of this forward pass; found once for passes of the same shapes."""
        compiling = torch.compiler.is_compiling()
        key = (output.shape, output.dtype, output.device, tuple(record.names), [tap.shape for tap in record.outputs])
        if not compiling and self._layout is not None and key == self._layout.key:
            return self._layout
        dims = batch_dims(output, record.outputs, self.plan.batch_dims)
        sites = sites_of(record.names, record.outputs, dims, output)
        if self.segments is None and not compiling:
            self.segments = Segments.walk(self.plan, sites, record.outputs, output)
        # One signal for all taps is made at once. A compiled graph cannot hold hooks on tensors inside it.
        just_in_time = (
            not compiling
            and self.plan.window == 1
            and isinstance(self.feedback, Projection)
            and self.feedback.kinds(sites) > 1
        )
        like = _weights_like(self.plan.model, output)
        layout = Layout(key, sites, product(output.shape[dims:]), just_in_time, like)
        self.sites = sites
        if not compiling:  # a compiled pass has a layout of its own: it delivers in another way
            self._layout = layout
        return layout

    def _prepare(self, layout: Layout, outputs: Sequence[Tensor]) -> Callable[[Tensor], Sequence[Tensor | None]]:
        sites, c = layout.sites, layout.c
        self.feedback.prepare(sites, c, layout.like)
        pending = self._begun(layout, outputs)
        targets = None
        if not self.recomputing():  # a recomputed pass must not take what was given for the backward pass under way
            targets, self._targets = self._targets, None

        def deliver(error: Tensor) -> Sequence[Tensor | None]:
            late, self._targets = self._targets, None
            rows = error.reshape(-1, c)
            require_finite(rows, "every tap would learn from it. No tap got a signal.")
            given = targets if targets is not None else late
            self._learn(pending, rows)
            signals = self.rule.signals(Delivery(rows, sites, given, self.feedback, pending.observation))
            return signals if layout.just_in_time and isinstance(signals, Signals) else self._shaped(signals, sites)

        return deliver

    def _arrived(self, signals: Sequence[Tensor | None]) -> None:
        # For whoever measures: autograd has no gradient of a tap's output here that it could be asked for.
        self.carried = list(signals) if self._fixed else []

    def _begun(self, layout: Layout, outputs: Sequence[Tensor]) -> Pending:
        """What this forward pass leaves for its error; mechanisms that learn add to it."""
        return Pending(layout.sites)

    def _learn(self, pending: Pending, error: Tensor) -> None:
        """Let the feedback learn, before it projects the error ``(N, c)``; fixed feedback does not."""

    @staticmethod
    def _shaped(signals: Sequence[Tensor | None], sites: Sequence[Site]) -> list[Tensor | None]:
        # Taps that share a signal get one tensor object: of several views, autograd would let several parameters keep
        # the same memory as their .grad.
        views: dict[tuple[int, tuple[int, ...], tuple[int, ...]], Tensor] = {}
        shaped: list[Tensor | None] = []
        for signal, site in zip(signals, sites, strict=True):
            if signal is None:
                shaped.append(None)
                continue
            key = (id(signal), site.batch, site.features)
            if key not in views:
                views[key] = signal.view(*site.batch, *site.features)
            shaped.append(views[key])
        return shaped

    def targets(self, targets: Tensor) -> None:
        """Keep the targets of the next (or the current) forward pass for its backward pass."""
        if not self._pauses:
            self._targets = targets

    # -- what it looks like ----------------------------------------------------------------------------------------

    def table(self) -> tuple[list[str], list[list[str]], list[str]]:
        """A row for each tap: its shape, its feedback, and the layers that learn from its signal."""
        if self.segments is None:
            names = ", ".join(self.plan.taps)
            return (
                [],
                [],
                [
                    f"taps: {names}",
                    "Shapes are known after the first forward pass (or with example_inputs=).",
                ],
            )
        header = ["tap", "shape", "feedback", "learns from it"]
        learners = self.segments.learners
        rows = [
            [site.name, "x".join(map(str, ("N", *site.features))), self.feedback.describe(site), layers]
            for site, layers in zip(self.sites, learners, strict=False)
        ]
        rows.append([self.plan.error_name or "(output)", "", "exact gradient", learners[-1]])
        return header, rows, [*_of_window(self.plan.window), *self.segments.remarks]


def _require_floating(output: Any, name: str) -> None:
    if not isinstance(output, Tensor) or not output.is_floating_point():
        found = f"a tensor of {output.dtype}" if isinstance(output, Tensor) else f"of type {type(output).__name__}"
        raise TapOutputError(
            f"the output of tap {name!r} is {found}; a tap needs one floating point tensor. Choose a module inside "
            "it, or put a bpfree.Tap() where the tensor is."
        )


def _of_window(window: int) -> list[str]:
    if window == 1:
        return []
    up = "one tap" if window == 2 else f"{window - 1} taps"
    return [f"With a window of {window}, layers learn from the signal {up} further up than their row says."]


def _weights_like(model: nn.Module, output: Tensor) -> Tensor:
    """An empty tensor with the precision of the model's weights on the device of its output."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            return torch.empty(0, dtype=parameter.dtype, device=output.device)
    return output.new_empty(0)

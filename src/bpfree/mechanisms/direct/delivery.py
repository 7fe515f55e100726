"""What a forward pass leaves for its error, and what happens when that comes: the feedback learns, signals go out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bpfree.axes.sites import ErrorRows, Site
from bpfree.errors import TapShapeError
from bpfree.feedback.projection import Projector
from bpfree.feedback.signals import Signals
from bpfree.finite import require_finite
from bpfree.mechanisms.direct.final_activation import FinalActivation

if TYPE_CHECKING:
    from bpfree.forward_mode.estimate import Observation
    from bpfree.mechanisms.direct.mechanism import DirectMechanism


@dataclass(frozen=True)
class Delivery:
    """What a direct rule knows when the error leaves the network.

    Attributes:
        error: e, shape ``(N, c)``: dL/do as autograd delivers it, one row a sample (token, node).
        sites: The taps that were reached, in forward order.
        targets: What ``attachment.targets(...)`` was given for this pass, or None.
        project: Maps a vector ``(N, c)`` to one signal ``(N, n_l)`` a tap through the rule's feedback.
        observation: What the estimating pass saw, for rules that ask for one.
        error_known: Whether the error has come; segments that learn in the forward pass get zeros in its place.
    """

    error: Tensor
    sites: Sequence[Site]
    targets: Tensor | None
    project: Projector
    observation: Observation | None = None
    error_known: bool = True


@dataclass
class PassMemory:
    """What a mechanism has from one forward pass when its error arrives.

    Attributes:
        sites: The taps that were reached.
        outputs: Their outputs h and the versions that these had, where the mechanism asked for them.
        observation: What an estimating pass saw.
        learning: Whether the feedback learns from this pass.
        parts: What it learns from, tap by tap, as far as it is there.
        evidence: What it learns from, by matrix.
    """

    sites: Sequence[Site]
    outputs: Sequence[tuple[Tensor, int | None]] = ()
    observation: Observation | None = None
    learning: bool = False
    parts: list[Tensor] = field(default_factory=list)
    evidence: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """What a forward pass of certain names and shapes (``key``) looks like."""

    key: Any
    rows: ErrorRows
    sites: tuple[Site, ...]
    formats: tuple[torch.memory_format, ...]
    c: int
    just_in_time: bool
    like: Tensor
    error_known: bool = True


class ErrorHandler:
    """What a forward pass leaves for its error: called with dL/do, it returns one signal for each tap."""

    def __call__(self, error: Tensor) -> Sequence[Tensor | None]:
        """Return the signals."""
        raise NotImplementedError

    def on_tap_output(self, number: int, output: Tensor, error: Tensor) -> None:
        """Called in a second run with each tap's output, before that tap's signal is asked for."""

    def on_end(self, error: Tensor) -> None:
        """Called when all taps have passed."""


class RuleSignals(ErrorHandler):
    """What one forward pass leaves for its error: called with dL/do, it returns the signals.

    Args:
        mechanism: Whose pass it was.
        layout: What the pass looked like.
        memory: What the mechanism keeps of it.
        targets: The targets given for it.
        behind: What the error is to be taken before, and the output behind it.
    """

    def __init__(
        self,
        mechanism: DirectMechanism,
        layout: Layout,
        memory: PassMemory,
        targets: Tensor | None,
        behind: tuple[FinalActivation, Tensor] | None = None,
    ) -> None:
        self._mechanism, self._layout, self._targets, self._behind = mechanism, layout, targets, behind
        self.memory = memory

    def __call__(self, error: Tensor) -> Sequence[Tensor | None]:
        """Return one signal a tap, which lies in memory as its output does; ``Signals`` are made when asked for."""
        layout, mechanism = self._layout, self._mechanism
        rows = self._rows(error)
        require_finite(rows)
        late = mechanism.take_targets()
        given = self._targets if self._targets is not None else late
        mechanism.learn(self.memory, rows)
        project, seen = mechanism.feedback, self.memory.observation
        delivery = Delivery(rows, layout.sites, given, project, seen, layout.error_known)
        signals = mechanism.rule.signals(delivery)
        if not isinstance(signals, Signals):
            _check(signals, layout.sites)
            return _shaped(signals, layout)
        signals = signals.shaped(layout.sites, layout.formats)
        return signals if layout.just_in_time else list(signals)

    def on_tap_output(self, number: int, output: Tensor, error: Tensor) -> None:
        """Show the mechanism a tap's output that is there only now."""
        self._mechanism.on_tap_output(self.memory, number, output, self._rows(error))

    def on_end(self, error: Tensor) -> None:
        """Let the mechanism learn from what has passed."""
        self._mechanism.learn(self.memory, self._rows(error))

    def _rows(self, error: Tensor) -> Tensor:
        """dL/do, or the gradient before a final softmax or sigmoid, one row a sample."""
        if self._behind is not None:
            final, output = self._behind
            error = final.error_before(error, output)
        return self._layout.rows.of(error, self._layout.c)


class NoSignals(ErrorHandler):
    """What a pass of a rule without signals leaves: the error is looked at, and no tap hears of it.

    Args:
        handler: Looks at the error.
    """

    def __init__(self, handler: ErrorHandler) -> None:
        self._handler = handler

    def __call__(self, error: Tensor) -> Sequence[Tensor | None]:
        """Return no signal."""
        self._handler(error)
        return ()


class GivenSignals(ErrorHandler):
    """Signals that are there already, in the place of a rule's.

    Args:
        signals: One a tap.
    """

    def __init__(self, signals: Sequence[Tensor | None]) -> None:
        self._signals = signals

    def __call__(self, error: Tensor) -> Sequence[Tensor | None]:
        """Return the signals."""
        return self._signals


def _check(signals: Sequence[Tensor | None], sites: Sequence[Site]) -> None:
    """Raise TapShapeError unless ``signals`` are one a tap, each ``(N, n_l)``."""
    if len(signals) != len(sites):
        raise TapShapeError(f"the rule or its projector returned {len(signals)} signals for {len(sites)} taps.")
    for signal, site in zip(signals, sites, strict=True):
        if signal is not None and not isinstance(signal, Tensor):  # callers are not type-checked
            raise TapShapeError(f"the signal for tap {site.name!r} is of type {type(signal).__name__}, not a tensor.")
        if signal is not None and signal.shape != (site.rows, site.width):
            raise TapShapeError(
                f"the signal for tap {site.name!r} has shape {tuple(signal.shape)}; {(site.rows, site.width)} is "
                "needed."
            )


def _shaped(signals: Sequence[Tensor | None], layout: Layout) -> list[Tensor | None]:
    # Taps that share a signal get one tensor object: of several views, autograd would let several parameters keep
    # the same memory as their .grad.
    views: dict[tuple[Any, ...], Tensor] = {}
    shaped: list[Tensor | None] = []
    for signal, site, format in zip(signals, layout.sites, layout.formats, strict=True):
        if signal is None:
            shaped.append(None)
            continue
        key = (id(signal), site.arrangement, format)
        if key not in views:
            views[key] = site.arrangement.like(signal, format)
        shaped.append(views[key])
    return shaped

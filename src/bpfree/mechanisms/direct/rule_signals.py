"""The handler of the error: it lets the feedback learn, and makes the rule's signals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bpfree.axes.sites import Arrangement, Site
from bpfree.errors import TapShapeError, shape_of
from bpfree.feedback.signals import Signals
from bpfree.finite import require_finite
from bpfree.mechanisms.direct.delivery import Delivery, ErrorHandler, Layout, PassMemory, Receivers
from bpfree.mechanisms.direct.final_activation import FinalActivation

if TYPE_CHECKING:
    from bpfree.mechanisms.direct.mechanism import DirectMechanism


class RuleSignals(ErrorHandler):
    """Lets the feedback learn when the error arrives, and asks the rule for its signals.

    Args:
        mechanism: The mechanism of the pass.
        layout: The layout of the pass.
        receivers: The taps that get signals.
        memory: The mechanism's memory of the pass.
        targets: The targets given for the pass.
        behind: The softmax or sigmoid before which the error is taken, and its output; None if there is none.
    """

    def __init__(
        self,
        mechanism: DirectMechanism,
        layout: Layout,
        receivers: Receivers,
        memory: PassMemory,
        targets: Tensor | None,
        behind: tuple[FinalActivation, Tensor] | None = None,
    ) -> None:
        self._mechanism, self._layout, self._targets, self._behind = mechanism, layout, targets, behind
        self._receivers, self.memory = receivers, memory

    def __call__(self, error: Tensor) -> Sequence[Tensor | None]:
        """Return one signal for each tap that gets one, in the memory format of the tap's output.

        ``Signals`` are made when they are asked for.
        """
        layout, mechanism = self._layout, self._mechanism
        sites, forms = self._receivers
        rows = self._rows(error)
        require_finite(rows)
        late = mechanism.take_targets()
        given = self._targets if self._targets is not None else late
        mechanism.learn(self.memory, rows)
        if not sites:  # a step that cuts nothing
            return ()
        project, seen = mechanism.feedback, self.memory.observation
        delivery = Delivery(rows, sites, given, project, seen, layout.error_known)
        signals = mechanism.rule.signals(delivery)
        if not isinstance(signals, Signals):
            _check(signals, sites)
            return _shaped(signals, forms)
        signals = signals.shaped(forms)
        return signals if layout.just_in_time else signals.all()

    def on_tap_output(self, number: int, output: Tensor, error: Tensor) -> None:
        """Show the mechanism a tap's output, which the rerun has just made."""
        self._mechanism.on_tap_output(self.memory, number, output, self._rows(error))

    def on_end(self, error: Tensor) -> None:
        """Let the mechanism learn from the evidence that the rerun has collected."""
        self._mechanism.learn(self.memory, self._rows(error))

    def _rows(self, error: Tensor) -> Tensor:
        """Return dL/do, or the gradient before a final softmax or sigmoid, with one row per sample."""
        if self._behind is not None:
            final, output = self._behind
            error = final.error_before(error, output)
        return self._layout.rows.of(error, self._layout.c)


def _check(signals: Sequence[Tensor | None], sites: Sequence[Site]) -> None:
    """Raise TapShapeError unless there is one signal per tap, each ``(N, n_l)``."""
    if isinstance(signals, Tensor) or not isinstance(signals, Sequence):  # callers are not type-checked
        raise TapShapeError(
            f"the signals of the rule or its projector are {shape_of(signals)}; a list with one per tap is needed."
        )
    if len(signals) != len(sites):
        raise TapShapeError(f"the rule or its projector returned {len(signals)} signals for {len(sites)} taps.")
    for signal, site in zip(signals, sites, strict=True):
        if signal is not None and not isinstance(signal, Tensor):
            raise TapShapeError(f"the signal for tap {site.name!r} is of type {type(signal).__name__}, not a tensor.")
        if signal is not None and signal.shape != (site.rows, site.width):
            raise TapShapeError(
                f"the signal for tap {site.name!r} has shape {tuple(signal.shape)}; {(site.rows, site.width)} is "
                "needed."
            )


def _shaped(
    signals: Sequence[Tensor | None], forms: Sequence[tuple[Arrangement, torch.memory_format]]
) -> list[Tensor | None]:
    # Taps that share a signal get one tensor object: of several views, autograd would let several parameters keep
    # the same memory as their .grad.
    views: dict[tuple[Any, ...], Tensor] = {}
    shaped: list[Tensor | None] = []
    for signal, (arrangement, format) in zip(signals, forms, strict=True):
        if signal is None:
            shaped.append(None)
            continue
        key = (id(signal), arrangement, format)
        if key not in views:
            views[key] = arrangement.like(signal, format)
        shaped.append(views[key])
    return shaped

"""Projectors: they turn errors into signals by matrices, or by a function of the user's, or make none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from torch import Tensor, nn

from bpfree.axes.sites import Site
from bpfree.errors import OptionError
from bpfree.feedback.options import Feedback
from bpfree.feedback.projection import Projection

Projector: TypeAlias = Callable[[Tensor, Sequence[Site]], Sequence[Tensor | None]]
"""Anything that maps an error ``(N, c)`` and the taps to one signal ``(N, n_l)`` a tap (None: no signal)."""


class NoFeedback(nn.Module):
    """No signal for any tap."""

    def prepare(self, sites: Sequence[Site], c: int, like: Tensor) -> None:
        """Do nothing: there is nothing to draw."""

    def forward(self, error: Tensor, sites: Sequence[Site]) -> list[None]:
        """Return None for every tap: the layers below stay as they are."""
        return [None] * len(sites)

    def describe(self, site: Site) -> str:
        """Return the entry of the attachment's table."""
        return "none: these stay as they are"


class CallableProjection(nn.Module):
    """A user's own projector, made to look like a :class:`Projection`. An ``nn.Module`` is saved and moved along."""

    def __init__(self, project: Projector) -> None:
        super().__init__()
        self.project = project

    def prepare(self, sites: Sequence[Site], c: int, like: Tensor) -> None:
        """Do nothing: the projector has its own matrices."""

    def forward(self, error: Tensor, sites: Sequence[Site]) -> Sequence[Tensor | None]:
        """Return the projector's signals; it is called once for all taps that have the same rows of the error."""
        if all(site.pairing is None for site in sites):
            return list(self.project(error, sites))
        signals: list[Tensor | None] = [None] * len(sites)
        for pairing in dict.fromkeys(site.pairing for site in sites):
            numbers = [number for number, site in enumerate(sites) if site.pairing == pairing]
            rows = error if pairing is None else pairing.gather(error)
            found = self.project(rows, [sites[number] for number in numbers])
            for number, signal in zip(numbers, found, strict=True):
                signals[number] = signal
        return signals

    def describe(self, site: Site) -> str:
        """Return the projector's name."""
        return getattr(self.project, "__name__", type(self.project).__name__)


def projection(feedback: Feedback | Projector | None, seed: int) -> Projection | CallableProjection | NoFeedback:
    """Make the projection of one attachment, which turns errors into signals.

    Raises:
        OptionError: ``feedback`` is no feedback.
    """
    if feedback is None:
        return NoFeedback()
    if isinstance(feedback, type) or not (isinstance(feedback, Feedback) or callable(feedback)):
        raise OptionError(
            f"feedback={feedback!r} is neither a bpfree.Feedback, a callable (error, sites) -> signals, nor None; of a "
            "class pass an instance, for example bpfree.Feedback()."
        )
    return Projection(feedback, seed) if isinstance(feedback, Feedback) else CallableProjection(feedback)

"""The objects that are passed between a forward pass, its error and its rule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bpfree.axes.sites import Arrangement, ErrorRows, Site
from bpfree.feedback.projectors import Projector
from bpfree.forward_mode.estimate import Observation


@dataclass(frozen=True, slots=True)
class Delivery:
    """The knowledge of a direct rule when the error arrives.

    Attributes:
        error: e, shape ``(N, c)``: dL/do as autograd delivers it, one row per sample (token, node).
        sites: The taps that get signals, in forward order.
        targets: The targets given to ``attachment.targets(...)`` for this pass, or None.
        project: Maps a vector ``(N, c)`` to one signal ``(N, n_l)`` per tap through the rule's feedback.
        observation: The observation of the estimating pass, for rules that ask for one.
        error_known: True if the error has come; segments that learn in the forward pass get zeros in its place.
    """

    error: Tensor
    sites: Sequence[Site]
    targets: Tensor | None
    project: Projector
    observation: Observation | None = None
    error_known: bool = True


@dataclass
class PassMemory:
    """The knowledge that a mechanism keeps of one forward pass until its error arrives.

    Attributes:
        sites: The taps that were reached.
        outputs: Their outputs h, each with its version, if the mechanism asked for them.
        observation: The observation of an estimating pass.
        learning: True if the feedback learns from this pass.
        parts: The evidence for the feedback so far, tap by tap.
        evidence: The evidence for the feedback, by matrix.
        rows: The number of rows behind it; None for all rows of the error.
        reduced: The error as matrices of a rank take it, while evidence is being made.
    """

    sites: Sequence[Site]
    outputs: Sequence[tuple[Tensor, int | None]] = ()
    observation: Observation | None = None
    learning: bool = False
    parts: list[Tensor] = field(default_factory=list)
    evidence: dict[str, Tensor] = field(default_factory=dict)
    rows: int | None = None
    reduced: Tensor | None = None


class Receivers(NamedTuple):
    """The taps that get signals in a pass.

    Attributes:
        sites: These taps.
        forms: The shapes and memory formats of their signals.
    """

    sites: tuple[Site, ...]
    forms: tuple[tuple[Arrangement, torch.memory_format], ...]


@dataclass(frozen=True)
class Layout:
    """The rows, sites, and shapes and memory formats of signals, of forward passes with certain names and shapes."""

    key: Any
    rows: ErrorRows
    sites: tuple[Site, ...]
    forms: tuple[tuple[Arrangement, torch.memory_format], ...]
    c: int
    just_in_time: bool
    like: Tensor
    error_known: bool = True
    some: dict[tuple[int, ...], Receivers] = field(default_factory=dict, compare=False)

    def receivers(self, numbers: Sequence[int] | None) -> Receivers:
        """Return the taps of these numbers; all for None.

        The same numbers give the very same sites: what is kept for them is found again.
        """
        if numbers is None or len(numbers) == len(self.sites):
            return Receivers(self.sites, self.forms)
        key = tuple(numbers)
        if key not in self.some:
            self.some[key] = Receivers(tuple([self.sites[i] for i in key]), tuple([self.forms[i] for i in key]))
        return self.some[key]

    def resized(self, sites: tuple[Site, ...]) -> Layout:
        """Return the layout for other numbers of rows, of a pass whose error nobody knows yet."""
        forms = tuple((site.arrangement, format) for site, (_, format) in zip(sites, self.forms, strict=True))
        return replace(self, rows=sites[0].error, sites=sites, forms=forms, error_known=False, some={})


class ErrorHandler(ABC):
    """Makes the signals of one forward pass: called with dL/do, it returns one for each tap."""

    @abstractmethod
    def __call__(self, error: Tensor) -> Sequence[Tensor | None]:
        """Return the signals."""

    def on_tap_output(self, number: int, output: Tensor, error: Tensor) -> None:  # noqa: B027 - most handlers do not need it
        """Called in a rerun with each tap's output, before that tap's signal is asked for."""

    def on_end(self, error: Tensor) -> None:  # noqa: B027 - most handlers do not need it
        """Called in a rerun after all taps."""


class NoSignals(ErrorHandler):
    """Shows the error to the handler of a rule without signals, and sends no signal.

    Args:
        handler: The handler that sees the error.
    """

    def __init__(self, handler: ErrorHandler) -> None:
        self._handler = handler

    def __call__(self, error: Tensor) -> Sequence[Tensor | None]:
        """Return no signal."""
        self._handler(error)
        return ()


class GivenSignals(ErrorHandler):
    """Signals that exist already, in place of a rule's signals.

    Args:
        signals: One signal per tap.
    """

    def __init__(self, signals: Sequence[Tensor | None]) -> None:
        self._signals = signals

    def __call__(self, error: Tensor) -> Sequence[Tensor | None]:
        """Return the signals."""
        return self._signals

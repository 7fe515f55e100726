"""The things that pass between a forward pass, its error and its rule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bpfree.axes.sites import ErrorRows, Site
from bpfree.feedback.projection import Projector
from bpfree.forward_mode.estimate import Observation


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


class ErrorHandler(ABC):
    """Makes the signals of one forward pass: called with dL/do, it returns one for each tap."""

    @abstractmethod
    def __call__(self, error: Tensor) -> Sequence[Tensor | None]:
        """Return the signals."""

    def on_tap_output(self, number: int, output: Tensor, error: Tensor) -> None:  # noqa: B027 - most need it not
        """Called in a second run with each tap's output, before that tap's signal is asked for."""

    def on_end(self, error: Tensor) -> None:  # noqa: B027 - most need it not
        """Called when all taps have passed."""


class NoSignals(ErrorHandler):
    """Looks at the error of a rule without signals, and sends no tap any.

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

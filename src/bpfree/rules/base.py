"""What a learning rule is.

A rule is an immutable description; what it draws and learns lives in the attachment. There are two families:

- a :class:`DirectRule` sends the error straight to every tap: it says which vector is projected;
- a :class:`LayerwiseRule` (:mod:`bpfree.rules.alignment`) goes back layer by layer with other weights than the
  forward ones.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from torch import Tensor

from bpfree.feedback import Feedback, Projector
from bpfree.taps import Site

if TYPE_CHECKING:
    from bpfree.mechanism import Mechanism, Plan


@dataclass(frozen=True)
class Rule(ABC):
    """Base of every learning rule."""

    @abstractmethod
    def mechanism(self, plan: Plan) -> Mechanism:
        """The object that puts this rule's hooks into one model and owns its state."""

    def __str__(self) -> str:
        """The rule with those options that are not at their defaults."""
        default = type(self)()
        options = {option.name: getattr(self, option.name) for option in fields(self)}
        told = [f"{name}={value!r}" for name, value in options.items() if value != getattr(default, name)]
        return f"{type(self).__name__}({', '.join(told)})"


@dataclass(frozen=True)
class Delivery:
    """What a direct rule knows when the error leaves the network.

    Attributes:
        error: e, shape ``(N, c)``: dL/do as autograd delivers it, one row a sample (token, node).
        sites: The taps that were reached, in forward order.
        targets: What ``attachment.targets(...)`` was given for this pass, or None.
        project: Maps a vector ``(N, c)`` to one signal ``(N, n_l)`` a tap through the rule's feedback.
    """

    error: Tensor
    sites: Sequence[Site]
    targets: Tensor | None
    project: Projector


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
        from bpfree.direct import DirectMechanism

        return DirectMechanism(self, plan)

    def vector(self, delivery: Delivery) -> Tensor:
        """The vector ``(N, c)`` that is projected; the error itself unless a rule says otherwise."""
        return delivery.error

    def signals(self, delivery: Delivery) -> Sequence[Tensor | None]:
        """One teaching signal ``(N, n_l)`` a tap, in the order of ``delivery.sites``; None trains nothing there."""
        return delivery.project(self.vector(delivery), delivery.sites)

"""The base of the direct rules: it says which vector is projected to every tap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from bpfree.errors import TapShapeError, shape_of
from bpfree.feedback.options import Feedback
from bpfree.feedback.projectors import Projector
from bpfree.mechanisms.base import Mechanism, Rule
from bpfree.mechanisms.direct.delivery import Delivery
from bpfree.mechanisms.direct.mechanism import DirectMechanism
from bpfree.plan import Plan


@dataclass(frozen=True)
class DirectRule(Rule):
    """A rule that gives every tap a signal at once, without the weights between the tap and the output.

    A rule of your own overrides :meth:`vector` (the vector to project) or, for anything else, :meth:`signals`.

    Args:
        feedback: The options for drawing the feedback matrices, or any callable projector
            ``(error, sites) -> signals``; None projects nothing.
    """

    feedback: Feedback | Projector | None = field(default_factory=Feedback, kw_only=True)

    def mechanism(self, plan: Plan) -> Mechanism:
        """Make the mechanism that cuts the graph at every tap, and sends the error to each."""
        return DirectMechanism(self, plan)

    @property
    def sends_signals(self) -> bool:
        """True if a tap may get a signal."""
        return self.feedback is not None or type(self).signals is not DirectRule.signals

    @property
    def needs_error(self) -> bool:
        """True if signals depend on the error; if not, streaming sends them in the forward pass."""
        return True

    def vector(self, delivery: Delivery) -> Tensor:
        """Return the vector ``(N, c)`` to project: the error itself, unless a rule overrides this."""
        return delivery.error

    def signals(self, delivery: Delivery) -> Sequence[Tensor | None]:
        """Return one signal ``(N, n_l)`` per tap, in the order of ``delivery.sites``; None trains nothing there."""
        vector = self.vector(delivery)
        if vector is not delivery.error:
            _check(vector, delivery.error)
        return delivery.project(vector, delivery.sites)


def _check(vector: Tensor, error: Tensor) -> None:
    """Raise TapShapeError unless a rule's vector is a matrix with a row for each row of the error."""
    if not isinstance(vector, Tensor) or vector.dim() != 2 or len(vector) != len(error):
        raise TapShapeError(
            f"the rule's vector is {shape_of(vector)}; a tensor of shape ({len(error)}, c) is needed, one row a sample."
        )

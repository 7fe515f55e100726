"""The base of the direct rules whose feedback learns."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from torch import Tensor

from bpfree.errors import OptionError, choice
from bpfree.feedback.options import Feedback
from bpfree.mechanisms.direct.rule import DirectRule
from bpfree.plan import Plan

if TYPE_CHECKING:
    from bpfree.mechanisms.learned.mechanism import LearnedMechanism

Stepper: TypeAlias = Literal["rule", "optimizer"]


@dataclass(frozen=True)
class Size:
    """The numbers that a rule's learning rate may depend on.

    Attributes:
        rows: N, the number of samples (tokens, nodes) behind one step.
        width: The number of coefficients of all taps together.
        step: The number of this matrix's step, from 1.
    """

    rows: int
    width: int
    step: int


@dataclass(frozen=True)
class LearnedRule(DirectRule):
    """A direct rule whose matrices B_l learn.

    In each backward pass every tap has evidence of B_l's shape ``(c, m)``. From it follows a direction, and B_l moves
    against it by ``rate``, before it projects the error. What the evidence is, a subclass says: derive a rule of your
    own from :class:`bpfree.ErrorLearnedRule` or :class:`bpfree.ForwardLearnedRule`, and override :meth:`direction`,
    and :meth:`rate` where the step is not 1. A rule that averages its evidence overrides :meth:`memory`.

    Args:
        feedback: The first B_l; one matrix per tap.
        every: Learn in every ``every``-th training pass only.
        stepped_by: ``"rule"``: B_l takes the step by itself. ``"optimizer"``: the matrices are parameters of the
            attachment, their ``.grad`` is the direction, and an optimizer of yours takes the step, with its own
            learning rate and schedule: ``torch.optim.Adam(attachment.parameters(), 1e-4)``.
    """

    feedback: Feedback = field(default_factory=lambda: Feedback(shared=False), kw_only=True)
    every: int = field(default=1, kw_only=True)
    stepped_by: Stepper = field(default="rule", kw_only=True)

    def __post_init__(self) -> None:
        choice("stepped_by", self.stepped_by, ("rule", "optimizer"))
        if not isinstance(self.every, int) or self.every < 1:
            raise OptionError(f"every={self.every}: learn in every pass (1), every second (2), ...")
        if not isinstance(self.feedback, Feedback):
            raise OptionError(f"{type(self).__name__} learns its feedback: give a bpfree.Feedback, not a projector.")
        if self.feedback.shared or not self.feedback.stored:
            raise OptionError(
                f"{type(self).__name__} learns one matrix a tap: feedback=bpfree.Feedback(shared=False, stored=True)."
            )

    @abstractmethod
    def mechanism(self, plan: Plan) -> LearnedMechanism:
        """Make the mechanism that cuts the graph at every tap, lets the feedback learn, and broadcasts the error."""

    @abstractmethod
    def direction(self, matrix: Tensor, evidence: Tensor) -> Tensor:
        """Return what B_l moves against, shape ``(c, m)``.

        Args:
            matrix: B_l, shape ``(c, m)``: a row for each number of the error, a column for each feature of the tap.
            evidence: The evidence of this pass, or its running average, of the same shape.
        """

    def rate(self, size: Size) -> float:
        """Return the length of the step; it is asked for only with ``stepped_by="rule"``."""
        return 1.0

    @property
    def begins_at_zero(self) -> bool:
        """True if B_l begins at zero, not at random."""
        return True

    @property
    def keeps_norm(self) -> bool:
        """True if every B_l keeps its first norm."""
        return False

    def memory(self, step: int) -> float:
        """Return the weight of new evidence in its running average: 1 is no average. ``step`` counts from 1."""
        return 1.0

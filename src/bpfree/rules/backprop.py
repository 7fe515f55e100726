"""The two references: backpropagation, and no feedback at all."""

from __future__ import annotations

from dataclasses import dataclass, field

from bpfree.mechanisms.base import Mechanism, Rule
from bpfree.mechanisms.direct.rule import DirectRule
from bpfree.plan import Plan


@dataclass(frozen=True)
class BP(Rule):
    """Plain backpropagation: nothing is cut. The reference in every comparison."""

    def mechanism(self, plan: Plan) -> Mechanism:
        """Make the mechanism, which only looks for NaN and infinity in the error."""
        return Mechanism(self, plan)


@dataclass(frozen=True)
class Shallow(DirectRule):
    """Only what lies above the last tap learns; every gradient below it stays None.

    This is the frozen control: what a rule reaches beyond it is what the layers below have learned. Under DDP
    it needs ``find_unused_parameters=True``; a compiled model may give zeros in place of None. Source: Launay et al.
    2020, table A.4.
    """

    feedback: None = field(default=None, init=False, repr=False)

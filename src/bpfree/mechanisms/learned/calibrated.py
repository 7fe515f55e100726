"""Learned direct feedback whose weights get backpropagation's gradient now and then."""

from __future__ import annotations

from typing import Any

from bpfree.mechanisms.direct.pass_state import PassState
from bpfree.mechanisms.learned.from_forward import ForwardLearnedMechanism, ForwardLearnedRule
from bpfree.plan import Plan


class CalibratedMechanism(ForwardLearnedMechanism):
    """Leaves the graph whole in every T-th training pass.

    Args:
        rule: The rule.
        plan: The model and the options.
        every: T.
    """

    def __init__(self, rule: ForwardLearnedRule, plan: Plan, every: int) -> None:
        super().__init__(rule, plan)
        self._every = every

    def _on_begin(self, state: PassState, call: Any) -> None:
        super()._on_begin(state, call)
        if self._is_calibrating:
            self._abandon(state)

    @property
    def _is_calibrating(self) -> bool:
        """True if the pass that has begun is plain backpropagation; measurements of the rule see no such pass."""
        return not self._fixed and self.averages.numbers["passes"] % self._every == 0

    def _is_wanted(self, state: PassState) -> bool:
        return super()._is_wanted(state) and not self._is_calibrating

    def table(self) -> tuple[list[str], list[list[str]], list[str]]:
        """Return the table with a remark on how often weights are transported."""
        header, rows, remarks = super().table()
        remark = f"Weight transport: one step in {self._every} ({1 / self._every:.2%}) is plain backpropagation."
        return header, rows, [*remarks, remark]

"""The forward gradient of the activations: perturbations at the taps, and the output's response to them."""

from __future__ import annotations

from bpfree.axes.sites import Site
from bpfree.distributed import rank
from bpfree.feedback.lazy_buffers import LazyBuffers
from bpfree.feedback.projectors import NoFeedback
from bpfree.feedback.random import derived_seed
from bpfree.forward_mode.perturbations import Perturbations
from bpfree.forward_mode.sample_part import Rows
from bpfree.mechanisms.direct.pass_state import PassState
from bpfree.mechanisms.direct.rule import DirectRule
from bpfree.mechanisms.learned.observing import ObservingMechanism
from bpfree.plan import Plan


class _NoMatrix(NoFeedback):
    def describe(self, site: Site) -> str:
        """Return the entry of the attachment's table."""
        return "random direction"


class ActivationsMechanism(ObservingMechanism):
    """The forward gradient of the activations: perturbations at the taps, and the output's answer to them."""

    exact_part = True

    def __init__(self, rule: DirectRule, plan: Plan, kind: Perturbations, rows: Rows) -> None:
        super().__init__(rule, plan, kind, rows)
        self.feedback = _NoMatrix()
        self.directions = LazyBuffers(seed=plan.seed, passes=0)

    def _is_wanted(self, state: PassState) -> bool:
        self.directions.numbers["passes"] += 1
        return True

    def _seed(self) -> int:
        return derived_seed(self.directions.numbers["seed"], "directions", self.directions.numbers["passes"], rank())

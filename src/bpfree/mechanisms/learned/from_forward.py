"""Direct feedback that learns from forward passes alone: an estimating pass follows every forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from bpfree.axes.sites import Site
from bpfree.distributed import rank
from bpfree.errors import choice
from bpfree.feedback.options import LATER
from bpfree.feedback.random import derived_seed
from bpfree.feedback.spatial import Form
from bpfree.forward_mode.estimate import Observation
from bpfree.forward_mode.hadamard import Turn
from bpfree.forward_mode.perturbations import Perturbations
from bpfree.forward_mode.sample_part import Rows, check_rows
from bpfree.mechanisms.direct.delivery import PassMemory
from bpfree.mechanisms.direct.pass_state import PassState
from bpfree.mechanisms.learned.mechanism import LearnedMechanism
from bpfree.mechanisms.learned.rule import LearnedRule
from bpfree.mechanisms.learned.stage_observing import StageObservingMechanism
from bpfree.plan import Plan
from bpfree.precision import in_own_precision


@dataclass(frozen=True)
class ForwardLearnedRule(LearnedRule):
    """A learned rule whose evidence is the forward estimate of do/dh_l, made without an error or a backward pass.

    Args:
        perturbations: The distribution of v: random signs (``"rademacher"``), several times cheaper to draw on a CPU
            and a little less noisy than ``"normal"``, as in the papers; or signs that are orthogonal over many passes
            (``"hadamard"``), so that taps and features hardly blur each other's estimates.
        rows: The samples of an estimating pass, drawn anew for each: their fraction of the batch (a float), or their
            number (an int). 1.0 takes all. An estimate from fewer samples costs less and is noisier: take a smaller
            step of the feedback. A sample is a row of the batch with all of its tokens or positions. Models whose
            samples see each other (nodes of one graph) are refused; batch normalization takes the statistics of the
            part in training, and dropout draws masks of its own.
    """

    perturbations: Perturbations = field(default="rademacher", kw_only=True)
    rows: Rows = field(default=1.0, kw_only=True, metadata=LATER)

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("perturbations", self.perturbations, ("normal", "rademacher", "hadamard"))
        check_rows(self.rows)

    def mechanism(self, plan: Plan) -> LearnedMechanism:
        """Make the mechanism that runs an estimating pass after the forward pass."""
        return ForwardLearnedMechanism(self, plan)

    @property
    def mixes_taps(self) -> bool:
        """True if the evidence of a tap depends on the matrices of others, through ``seen.total``."""
        return False

    def evidence(self, seen: Observation, matrices: Sequence[Tensor]) -> list[Tensor]:
        r"""Return the forward estimate of every tap of ``seen``, shape ``(c, m_l)``; ``matrices`` are their B_l.

        .. math:: G_l = \frac{1}{N}\sum_b \dot o_b \otimes v_{b,l}
        """
        return seen.correlations(seen.change.to(matrices[0]))


class ForwardLearnedMechanism(StageObservingMechanism, LearnedMechanism):
    """A learned mechanism whose evidence comes from an estimating pass."""

    rule: ForwardLearnedRule

    def __init__(self, rule: ForwardLearnedRule, plan: Plan) -> None:
        super().__init__(rule, plan, rule.perturbations, rule.rows)

    def _form(self, site: Site) -> Form:
        # Perturbations stay within what B can express, for less noise.
        return self.rule.feedback.form(site)

    def _is_wanted(self, state: PassState) -> bool:
        return state.learning

    def _seed(self) -> int:
        return derived_seed(
            self.feedback.numbers["seed"], "perturbations", self.averages.numbers["passes"], self._process
        )

    @property
    def _process(self) -> int:
        # The stages of a pipeline draw as one process does.
        return 0 if self.plan.is_stage else rank()

    def _turn(self) -> Turn | None:
        if self._kind != "hadamard":
            return None
        seed = derived_seed(self.feedback.numbers["seed"], "hadamard", self._process)
        return Turn(seed, (self.averages.numbers["passes"] - 1) // self.rule.every, *self.columns_elsewhere)

    def _seen(self, memory: PassMemory, observation: Observation) -> None:
        if not len(observation.change):  # an empty batch says nothing
            return
        # The evidence is far smaller than the perturbations, which need not wait for the error.
        with in_own_precision(observation.change):
            observation = replace(observation, change=self.feedback.reduced(observation.change))
            evidence = self.rule.evidence(observation, self.matrices(observation.sites))
        memory.evidence = self._gathered(observation.sites, evidence)
        memory.rows = len(observation.change)

"""Direct mechanisms that run their estimating passes in one process, or in the stages of a pipeline.

In a stage a pass is not observed when it has ended: its activations are sent on first, and the tangents that enter may
still be under way. A schedule then runs the estimating pass, and completes it when the last stage has told how the
output answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from bpfree.axes.sites import Site
from bpfree.compiled_code import outside_compiled_code
from bpfree.errors import VerificationError
from bpfree.forward_mode.estimate import Estimator, Response
from bpfree.forward_mode.grad_mode import silent_rules
from bpfree.forward_mode.perturbations import Perturbations
from bpfree.forward_mode.sample_part import Rows
from bpfree.mechanisms.direct.delivery import PassMemory
from bpfree.mechanisms.direct.final_activation import final_activation
from bpfree.mechanisms.direct.pass_state import PassState
from bpfree.mechanisms.direct.rule import DirectRule
from bpfree.mechanisms.learned.observing import ObservingMechanism
from bpfree.mechanisms.learned.stage_estimate import StageEstimate
from bpfree.plan import Plan
from bpfree.rerun.arguments import Call
from bpfree.rerun.own_graphs import own_graphs
from bpfree.rerun.snapshot import RunSnapshot
from bpfree.rerun.trial import without_trace
from bpfree.verification.adjoint import check_adjoint
from bpfree.verification.sample_part import check_sample_part
from bpfree.verification.second_run import check_second_run


class StageObservingMechanism(ObservingMechanism):
    """An observing mechanism on a whole model, or on one stage of a pipeline; its arguments are the base's."""

    def __init__(self, rule: DirectRule, plan: Plan, kind: Perturbations, rows: Rows) -> None:
        super().__init__(rule, plan, kind, rows)
        self._ended: tuple[PassState, RunSnapshot, Call] | None = None

    def _make_estimator(self, plan: Plan) -> Estimator:
        if plan.is_stage and plan.error_module not in plan.modules:
            # The error is taken in another process, and what answers to perturbations here is the stage's output.
            plan = replace(plan, errors={"": plan.model})
        return super()._make_estimator(plan)

    def remove(self) -> None:
        """Take the hooks out and forget the forward pass."""
        super().remove()
        self._ended = None

    @property
    def awaits_observing(self) -> bool:
        """True if a pass has ended that is still to be observed."""
        return self._ended is not None

    @outside_compiled_code
    def _observe(self, state: PassState, start: RunSnapshot, call: Any) -> None:
        if self.plan.is_stage:
            self._ended = state, start, call
        else:
            super()._observe(state, start, call)

    def observe_stage(self, samples: int, entering: Sequence[Tensor]) -> StageEstimate:
        """Run the estimating pass of the pass that has ended and awaits one.

        Args:
            samples: The number of samples of a micro-batch.
            entering: The tangents of the stage's floating point arguments, in order; none in the first stage.
        """
        assert self._ended is not None
        (state, start, call), self._ended = self._ended, None
        # There is one error, and no memory where no tap lies below it in this stage.
        memory, c = next(iter(state.memories.values()), (PassMemory(()), 0))
        try:
            with self.running(PassState(again=True, entered=True)):
                part, seed = self.part_of(samples), self._seed()
                response = self._estimator.run(call, start, memory.sites, seed, part, entering, self._turn())
        finally:
            self._estimator.tape.drop()
        return StageEstimate(self._leaving(state, response), response, memory, c, self._seen)

    def _leaving(self, state: PassState, response: Response) -> Sequence[Tensor]:
        """Return the tangents of what the stage gives on; in the last stage that of the error."""
        tangents = list(response.tangents[0].values())
        ((name, output),) = state.errors.items()
        final = final_activation(self, name, output.detach())
        if final is None:
            return tangents
        (value,) = response.values[0].values()
        return [final.change_before(tangents[0], value)]

    def try_stage(
        self, call: Call, sites: Sequence[Site], samples: int, entering: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """Run an estimating pass before the first one that counts, without a trace, and return what leaves the stage.

        Raises:
            VerificationError: The stage runs a second time in another way, or its tangents do not fit its gradients.
            ForwardDerivativeError: A layer has no forward-mode derivative, or no perturbation gets through.
        """
        plan, part = self._estimator.plan, self.part_of(samples)
        with silent_rules(), own_graphs():
            findings = check_second_run(plan, call)
            if not findings:
                with without_trace(plan, call):
                    start = RunSnapshot.now(plan, call)
                    response = self._estimator.run(call, start, sites, 0, part, entering)
                    findings = check_adjoint(self._estimator, call, start, sites) if sites else []
            if not findings and sites and not self.takes_all_rows:
                with without_trace(plan, call):
                    findings = check_sample_part(plan, call, sites, exact=self.exact_part)
        if findings:
            raise VerificationError(f"{findings[0]} No weight has learned.")
        return list(response.tangents[0].values())

"""Direct mechanisms that look back at a forward pass: an estimating pass runs behind it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from bpfree.estimate import Estimator, Observation, Perturbations
from bpfree.mechanisms.delivery import Pending
from bpfree.mechanisms.direct import DirectMechanism, DirectRule
from bpfree.mechanisms.pass_state import PassState
from bpfree.plan import Plan
from bpfree.spatial import Form
from bpfree.taps import Site


class ObservingMechanism(DirectMechanism):
    """Runs the estimating pass when a forward pass has ended, and hands on what it saw.

    Args:
        rule: The rule.
        plan: Where it is put.
        kind: What the perturbations are drawn from.
    """

    def __init__(self, rule: DirectRule, plan: Plan, kind: Perturbations) -> None:
        super().__init__(rule, plan)
        self._estimator = Estimator(plan, kind, self._form)

    def _form(self, site: Site) -> Form:
        """What the perturbation of a tap is made of: one number a feature."""
        return Form.of(site.features, None)

    def _is_wanted(self, state: PassState) -> bool:
        """Whether the pass that begins is to be observed; asked once a pass."""
        return True

    def _seed(self) -> int:
        """The seed of this pass's perturbations."""
        raise NotImplementedError

    def _seen(self, pending: Pending, observation: Observation) -> None:
        """Hear what the estimating pass saw of the forward pass behind ``pending``."""
        pending.observation = observation

    def install(self) -> None:
        """Also keep what costly layers give, and look back when the forward pass has ended."""
        self._handles += self._estimator.tape.install()
        super().install()

    def remove(self) -> None:
        """Take the hooks out and forget the forward pass."""
        super().remove()
        self._estimator.tape.drop()

    def _begin(self, state: PassState, call: Any) -> None:
        super()._begin(state, call)
        state.observed = state.counts and self._is_wanted(state)
        if state.observed:
            # Behind a pass that stores no graph nothing may grow with the depth.
            self._estimator.begin(call, keep=not self.plan.streaming)
        else:
            self._estimator.tape.drop()

    def _finished(self, call: PassState, args: Any, kwargs: Any, output: Any) -> Any:
        output = super()._finished(call, args, kwargs, output)
        if call.observed and call.pending:
            self._observe(call, (args, kwargs))
        return output

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _observe(self, state: PassState, call: Any) -> None:
        (name, (pending, c)), *_ = state.pending.items()
        with self.running(PassState(again=True)):
            observation = self._estimator.observe(call, pending.sites, c, self._seed())
        output = state.left[name].detach()
        final = self._final(name, output)
        if final is not None:
            change = final.change_before(observation.change.view_as(output), output)
            observation = replace(observation, change=change.reshape(-1, c))
        self._seen(pending, observation)

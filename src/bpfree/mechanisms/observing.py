"""Direct mechanisms that look back at a forward pass: an estimating pass runs behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bpfree.estimate import Estimator, Observation, Perturbations, Response
from bpfree.mechanisms.delivery import Pending
from bpfree.mechanisms.direct import DirectMechanism, DirectRule
from bpfree.mechanisms.pass_state import PassState
from bpfree.mechanisms.survey import error_key
from bpfree.plan import Plan
from bpfree.preserve import Surroundings
from bpfree.sites import Site
from bpfree.spatial import Form
from bpfree.verification.adjoint import check_adjoint
from bpfree.verification.finding import Finding
from bpfree.verification.second_run import check_second_run


class ObservingMechanism(DirectMechanism):
    """Runs the estimating pass when a forward pass has ended, and hands on what it saw.

    Args:
        rule: The rule.
        plan: Where it is put.
        kind: What the perturbations are drawn from.
    """

    def __init__(self, rule: DirectRule, plan: Plan, kind: Perturbations) -> None:
        super().__init__(rule, plan)
        self._kind: Perturbations = kind
        self._estimator = Estimator(plan, kind, self._form)

    def replan(self, plan: Plan) -> None:
        """Serve the model as ``plan`` has it, with the feedback that is there."""
        self._estimator = Estimator(plan, self._kind, self._form)
        super().replan(plan)

    def _form(self, site: Site) -> Form:
        """What the perturbation of a tap is made of: one number a feature."""
        return Form.of(site.features, None, site.channel)

    def _is_wanted(self, state: PassState) -> bool:
        """Whether the pass that begins is to be observed; asked once a pass."""
        return True

    def _seed(self) -> int:
        """The seed of this pass's perturbations."""
        raise NotImplementedError

    def _seen(self, pending: Pending, observation: Observation) -> None:
        """Hear what the estimating pass saw of the forward pass behind ``pending``."""
        pending.observation = observation

    def check_estimates(self, call: Any, sites: Sequence[Site]) -> list[Finding]:
        """Try whether the model runs a second time as it did the first, and whether its tangents fit its gradients."""
        found = check_second_run(self.plan, call)
        if found or not sites:
            return found
        return check_adjoint(self._estimator, call, Surroundings.now(self.plan, call), sites)

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
        groups, group_of = _grouped({name: pending for name, (pending, _) in state.pending.items()})
        with self.running(PassState(again=True)):
            responses = self._estimator.observe(call, [list(group.values()) for group in groups], self._seed())
        for name, (pending, c) in state.pending.items():
            response, rows = responses[group_of[name]], pending.sites[0].error
            output = state.left[name].detach()
            tangent, final = self._tangent(response, name, output), self._final(name, output)
            if final is not None:
                tangent = final.change_before(tangent.view_as(output), output)
            observation = response.observation(rows.of(tangent.view_as(output), c), pending.sites)
            sender = self.of_error(name, first=name == next(iter(state.pending)))
            assert isinstance(sender, ObservingMechanism)
            sender._seen(pending, observation)

    def _tangent(self, response: Response, name: str, output: Tensor) -> Tensor:
        """The tangent of the error ``name``; zero where the estimating pass did not come there."""
        for place, tangents in zip(self.plan.errors, response.tangents, strict=True):
            for path, tangent in tangents.items():
                if error_key(place, path) == name:
                    return tangent
        return torch.zeros_like(output)


def _grouped(pending: Mapping[str, Pending]) -> tuple[list[dict[str, Site]], dict[str, int]]:
    """The taps below the errors, and by error which group of them it has.

    Errors that lay out a tap in several ways are perturbed one group at a time.
    """
    groups: list[dict[str, Site]] = []
    group_of: dict[str, int] = {}
    for error, left in pending.items():
        sites = {site.name: site for site in left.sites}
        number = next((i for i, group in enumerate(groups) if _agree(group, sites)), len(groups))
        if number == len(groups):
            groups.append({})
        groups[number].update(sites)
        group_of[error] = number
    return groups, group_of


def _agree(group: Mapping[str, Site], sites: Mapping[str, Site]) -> bool:
    shared = group.keys() & sites.keys()
    return all(group[name].arrangement == sites[name].arrangement for name in shared)

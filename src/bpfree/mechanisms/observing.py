"""Direct mechanisms that look back at a forward pass: an estimating pass runs behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bpfree.estimate import Estimator, Observation, Perturbations
from bpfree.mechanisms.delivery import Layout, Pending
from bpfree.mechanisms.direct import DirectMechanism, DirectRule
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
        self._observing = False
        self._unobserved: tuple[Pending, int] | None = None

    def _form(self, site: Site) -> Form:
        """What the perturbation of a tap is made of: one number a feature."""
        return Form.of(site.features, None)

    def _wanted(self) -> bool:
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
        self._handles.append(self.plan.model.register_forward_hook(self._observe, with_kwargs=True))

    def remove(self) -> None:
        """Take the hooks out and forget the forward pass."""
        super().remove()
        self._estimator.tape.drop()
        self._unobserved = None

    def _begin(self, call: Any) -> None:
        self._unobserved = None
        super()._begin(call)
        self._observing = self._counts and self._wanted()
        if self._observing:
            # Behind a pass that stores no graph nothing may grow with the depth.
            self._estimator.begin(call, keep=not self.plan.streaming)
        else:
            self._estimator.tape.drop()

    def _begun(self, layout: Layout, outputs: Sequence[Tensor]) -> Pending:
        pending = super()._begun(layout, outputs)
        self._unobserved = (pending, layout.c)
        return pending

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _observe(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        if not self._observing or self._unobserved is None:
            return
        self._observing = False
        (pending, c), self._unobserved = self._unobserved, None
        self._inside = True
        try:
            observation = self._estimator.observe((args, kwargs), pending.sites, c, self._seed())
        finally:
            self._inside = False
        self._seen(pending, observation)

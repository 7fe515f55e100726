"""Direct feedback by the best matrix that a tap can have: a bound for rules that learn B, and none to train with.

It needs backpropagation's gradients at every tap in every step, so it transports weights and saves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bpfree.axes.sites import Site
from bpfree.error_values import error_tensors
from bpfree.errors import OptionError
from bpfree.forward_mode.estimate import at_taps
from bpfree.forward_mode.grad_mode import silent_rules
from bpfree.forward_mode.own_pass import OwnPass
from bpfree.forward_mode.tangents import run_to
from bpfree.mechanisms.direct.delivery import PassMemory
from bpfree.mechanisms.direct.pass_state import PassState
from bpfree.mechanisms.learned.mechanism import LearnedMechanism
from bpfree.mechanisms.learned.rule import LearnedRule, Size
from bpfree.plan import Plan
from bpfree.rerun.snapshot import RunSnapshot


@dataclass(frozen=True)
class BestMatrix(LearnedRule):
    r"""B_l minimizes the squared distance of e_t B_l to backpropagation's gradients g_t, over the rows of past batches.

    .. math:: B_l = \Big(\sum_t e_t^\top e_t + \lambda I\Big)^{-1} \sum_t e_t^\top g_t

    Args:
        decay: The weight of a batch falls by this factor with every step.
        ridge: lambda, relative to the mean of the diagonal of the first sum.
    """

    decay: float = 0.9
    ridge: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.decay < 1 or self.ridge <= 0:
            raise OptionError(f"decay={self.decay} is in [0, 1), ridge={self.ridge} is positive.")

    def mechanism(self, plan: Plan) -> LearnedMechanism:
        """Make the mechanism that differentiates a pass of its own behind every forward pass."""
        return BestMatrixMechanism(self, plan)

    def direction(self, matrix: Tensor, evidence: Tensor) -> Tensor:
        """Return what is to be taken away: the matrix becomes the best one at once."""
        return matrix - evidence

    def rate(self, size: Size) -> float:
        """Return 1."""
        return 1.0


class BestMatrixMechanism(LearnedMechanism):
    """Solves for the matrices when the error arrives, for models with one error whose rows are its leading axes."""

    rule: BestMatrix

    def __init__(self, rule: BestMatrix, plan: Plan) -> None:
        super().__init__(rule, plan)
        self._errors: Tensor | None = None
        self._products: dict[str, Tensor] = {}

    def _on_begin(self, state: PassState, call: Any) -> None:
        super()._on_begin(state, call)
        if state.counts:
            self._start, self._call = RunSnapshot.now(self.plan, call), call

    def learn(self, memory: PassMemory, error: Tensor) -> None:
        """Let every matrix become the best one."""
        rows = error.double()
        found = self._solved(rows, memory.sites, self._gradients(memory.sites, error))
        memory.evidence = self._gathered(memory.sites, [B.to(error.dtype) for B in found])
        super().learn(memory, error)

    def _solved(self, rows: Tensor, sites: Sequence[Site], gradients: Sequence[Tensor]) -> list[Tensor]:
        decay = self.rule.decay
        errors = rows.T @ rows
        errors = self._errors = errors if self._errors is None else decay * self._errors + errors
        for site, gradient in zip(sites, gradients, strict=True):
            product = rows.T @ site.rows_of(gradient).double()
            before = self._products.get(site.name)
            self._products[site.name] = product if before is None else decay * before + product
        ridge = self.rule.ridge * errors.diagonal().mean()
        factor = torch.linalg.cholesky(errors + ridge * torch.eye(len(errors)).to(errors))
        return [torch.cholesky_solve(self._products[site.name], factor) for site in sites]

    def _gradients(self, sites: Sequence[Site], error: Tensor) -> Sequence[Tensor]:
        """Backpropagation's gradients at the taps, of the pass that the error is of, masks of dropout included."""
        plan, taps = self.plan, dict[str, Tensor]()
        with (
            torch.enable_grad(),
            self._start.restored(plan.model),
            silent_rules(),
            OwnPass(plan.model, plan.state) as own,
            at_taps(plan, own, sites, lambda site, output: taps.setdefault(site.name, output)),
        ):
            (place,) = run_to(plan.model, own, list(plan.errors.values()), self._call)
        (output,) = error_tensors(place).values()
        return torch.autograd.grad(output, [taps[site.name] for site in sites], error.view_as(output))

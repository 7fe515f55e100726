"""The dot-product test: the tangents of the estimating pass are those that autograd's gradients belong to.

For perturbations v_l of the taps and any u of the errors' shapes, <u, sum_l J_l v_l> = sum_l <J_l^T u, v_l>. The left
side is the estimating pass's, the right side is made of gradients of a plain pass, in which nothing is cut. With
u = sum_l J_l v_l the left side is a sum of squares, in which nothing cancels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from bpfree.axes.sites import Site
from bpfree.error_values import error_tensors
from bpfree.forward_mode.eager import eager
from bpfree.forward_mode.estimate import Estimator, at_taps
from bpfree.forward_mode.grad_mode import silent_rules
from bpfree.forward_mode.own_pass import OwnPass
from bpfree.forward_mode.tangents import Call, run_to
from bpfree.rerun.snapshot import RunSnapshot
from bpfree.verification.finding import Finding
from bpfree.verification.local_adjoint import ModuleCalls, Precision


def check_adjoint(
    estimator: Estimator, call: Call, start: RunSnapshot, sites: Sequence[Site], seed: int = 0
) -> list[Finding]:
    """Compare the tangents of an estimating pass with gradients: of all taps at once, and tap by tap if that fails.

    It costs an estimating pass and a forward and backward pass. The rule's own pass must be over.

    Args:
        estimator: Makes the estimating passes. Where a recording of its own pass is under way it is used up.
        call: The model's arguments.
        start: The state that a pass on them begins with.
        sites: The taps that it reaches.
        seed: That of the perturbations.
    """
    model = estimator.plan.model
    precision = Precision(model)
    plain = _PlainPass.run(estimator, call, start, sites, precision.noted())
    tolerance = precision.tolerance
    sides = _compare(estimator, call, start, sites, seed, plain, tolerance, keep_graph=False)
    if sides.agree:
        return []
    # Once more, with every module's call kept: that takes the memory of all activations several times over.
    calls = ModuleCalls(model, tolerance)
    plain = _PlainPass.run(estimator, call, start, sites, calls.graph())
    # What is wrong lies above the last tap whose own tangent is wrong.
    for number in reversed(range(len(sites))):
        with calls.tangents():
            alone = _compare(estimator, call, start, [sites[number]], seed, plain, tolerance, keep_graph=True)
        if not alone.agree:
            return [_finding(alone, sites, number, calls)]
    return [_finding(sides, sites, 0, calls)]


@dataclass(frozen=True)
class _Sides:
    """Both sides of the law, and how far apart rounding may put them."""

    forward: float
    backward: float
    bound: float

    @property
    def agree(self) -> bool:
        return abs(self.forward - self.backward) <= self.bound


@dataclass(frozen=True)
class _PlainPass:
    """A pass that autograd can differentiate: its outputs at taps, and its errors."""

    taps: dict[str, Tensor]
    errors: list[dict[str, Tensor]]

    @classmethod
    def run(
        cls,
        estimator: Estimator,
        call: Call,
        start: RunSnapshot,
        sites: Sequence[Site],
        watch: AbstractContextManager[None],
    ) -> _PlainPass:
        taps: dict[str, Tensor] = {}

        def keep(site: Site, output: Tensor) -> Tensor | None:
            if not torch.is_grad_enabled():  # what the model computes without gradients is a constant
                return None
            kept = taps[site.name] = output if output.requires_grad else output.detach().requires_grad_()
            # What an in-place operation behind the tap overwrites is a copy.
            return kept.clone()

        plan = estimator.plan
        with (
            start.restored(plan.model),
            silent_rules(),
            eager(),
            OwnPass(plan.model, plan.state) as own,
            at_taps(plan, own, sites, keep),
            watch,
        ):
            outputs = run_to(plan.model, own, list(plan.errors.values()), call)
        return cls(taps, [error_tensors(output) for output in outputs])


def _compare(
    estimator: Estimator,
    call: Call,
    start: RunSnapshot,
    sites: Sequence[Site],
    seed: int,
    plain: _PlainPass,
    tolerance: float,
    *,
    keep_graph: bool,
) -> _Sides:
    seen = estimator.run(call, start, sites, seed)
    places = zip(plain.errors, seen.tangents, strict=True)
    changes = [(error, tangents[path].detach().reshape(error.shape)) for errors, tangents in places
               for path, error in errors.items() if path in tangents]  # fmt: skip
    # Of size 1, whatever the model's units: half precision would overflow.
    size = max((float(change.detach().abs().max()) for _, change in changes if change.numel()), default=0.0) or 1.0
    u = [change / size if bool(change.any()) else _signs(change) for _, change in changes]
    forward = sum(_dot(one, change) for one, (_, change) in zip(u, changes, strict=True))
    taps = [(plain.taps[site.name], site, v) for site, v in zip(seen.sites, seen.perturbations, strict=True)]
    gradients = _gradients([error for error, _ in changes], [tap for tap, _, _ in taps], u, keep_graph=keep_graph)
    backward = squares = 0.0
    for gradient, (tap, site, v) in zip(gradients, taps, strict=True):
        if gradient is not None:
            product = gradient.double() * estimator.direction(site, v, tap).detach().double()
            backward += float(product.sum())
            squares += float(product.square().sum())
    scale = forward + math.sqrt(squares)
    return _Sides(forward, backward, tolerance * scale)


def _gradients(
    errors: Sequence[Tensor], taps: Sequence[Tensor], u: Sequence[Tensor], *, keep_graph: bool
) -> Sequence[Tensor | None]:
    """Return J_l^T u for every tap."""
    live = [(error, one) for error, one in zip(errors, u, strict=True) if error.requires_grad]
    if not live:
        return [None] * len(taps)
    outputs, given = zip(*live, strict=True)
    return torch.autograd.grad(outputs, taps, given, retain_graph=keep_graph, allow_unused=True)


def _signs(like: Tensor) -> Tensor:
    """Return random signs u for an error that no perturbation moves: right only if its gradients are zero too."""
    generator = torch.Generator(like.device).manual_seed(0)
    return torch.empty_like(like).bernoulli_(generator=generator) * 2 - 1


def _dot(left: Tensor, right: Tensor) -> float:
    return float((left.detach().double() * right.detach().double()).sum())


def _finding(sides: _Sides, sites: Sequence[Site], number: int, calls: ModuleCalls) -> Finding:
    tap = sites[number].name
    above = repr(sites[number + 1].name) if number + 1 < len(sites) else "the error"
    suspect = calls.suspect()
    inside = f"in {suspect}" if suspect else f"between tap {tap!r} and {above}"
    return Finding(
        check="adjoint",
        where=tap,
        found=f"the tangents of the estimating pass do not fit the gradients {inside}: <u, J v> = {sides.forward:.4g}, "
        f"<J^T u, v> = {sides.backward:.4g}, and rounding explains {sides.bound:.1g}.",
        remedy="Look there for an autograd.Function whose jvp is not the transpose of its backward, and leave the jvp "
        "out (one is then made of its backward); or use a rule with no estimating pass (bpfree.DFA, bpfree.DKP).",
    )

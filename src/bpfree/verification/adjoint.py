"""The dot-product test: the tangents of the estimating pass are those that autograd's gradients belong to.

For perturbations v_l of the taps and any u of the errors' shapes, <u, sum_l J_l v_l> = sum_l <J_l^T u, v_l>. The left
side is the estimating pass's, the right side is made of gradients of a plain pass. Every segment is tried by itself
(:mod:`bpfree.verification.segment_adjoint`). Where one fails, passes in which nothing is cut find the place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bpfree.axes.sites import Site
from bpfree.error_values import error_tensors
from bpfree.forward_mode.eager import eager
from bpfree.forward_mode.estimate import Estimator, at_taps
from bpfree.forward_mode.grad_mode import silent_rules
from bpfree.forward_mode.own_pass import OwnPass
from bpfree.forward_mode.tangents import run_to
from bpfree.rerun.arguments import Call
from bpfree.rerun.checkpoints import checkpoints_off
from bpfree.rerun.snapshot import RunSnapshot
from bpfree.verification.finding import Finding
from bpfree.verification.local_adjoint import ModuleCalls, Precision, dot
from bpfree.verification.segment_adjoint import Sides, compare_segments


def check_adjoint(
    estimator: Estimator,
    call: Call,
    start: RunSnapshot,
    sites: Sequence[Site],
    seed: int = 0,
    *,
    name_module: bool = True,
) -> list[Finding]:
    """Compare the tangents of an estimating pass with gradients, segment by segment.

    It costs an estimating pass, and a forward and backward pass that holds the graph of one segment at a time. The
    rule's own pass must be over.

    Args:
        estimator: Makes the estimating passes. Where a recording of its own pass is under way it is used up.
        call: The model's arguments.
        start: The state that a pass on them begins with.
        sites: The taps that it reaches.
        seed: That of the perturbations.
        name_module: True looks for the module where the test fails: this takes the memory of all activations several
            times over.
    """
    precision = Precision(estimator.plan.model)
    sides = compare_segments(estimator, call, start, sites, seed, precision)
    wrong = [one for one in sides if not one.agree(precision.tolerance)]
    if not wrong:
        return []
    located = _located(estimator, call, start, sites, seed, precision.tolerance) if name_module else None
    return [located or _finding(wrong[-1], precision.tolerance, "", name_module=name_module)]


def _located(
    estimator: Estimator, call: Call, start: RunSnapshot, sites: Sequence[Site], seed: int, tolerance: float
) -> Finding | None:
    """Return a finding for the last tap whose own tangent is wrong, and the module above it; None if all are right."""
    calls = ModuleCalls(estimator.plan.model, tolerance)
    with checkpoints_off():  # they may hold taps
        plain = _PlainPass.run(estimator, call, start, sites, calls.graph())
    for number in reversed(range(len(sites))):
        with calls.tangents():
            alone = _compare(estimator, call, start, sites[number], seed, plain)
        if not alone.agree(tolerance):
            above = sites[number + 1].name if number + 1 < len(sites) else ""
            return _finding(replace(alone, above=above), tolerance, calls.suspect(), name_module=True)
    return None


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


def _compare(estimator: Estimator, call: Call, start: RunSnapshot, site: Site, seed: int, plain: _PlainPass) -> Sides:
    """Compare the effect of one tap's perturbation on the errors with gradients of the plain pass."""
    seen = estimator.run(call, start, [site], seed)
    places = zip(plain.errors, seen.tangents, strict=True)
    changes = [(error, tangents[path].detach().reshape(error.shape)) for errors, tangents in places
               for path, error in errors.items() if path in tangents]  # fmt: skip
    # Of size 1, whatever the model's units: half precision would overflow.
    size = max((float(change.detach().abs().max()) for _, change in changes if change.numel()), default=0.0) or 1.0
    u = [change / size if bool(change.any()) else _signs(change) for _, change in changes]
    forward = sum(dot(one, change) for one, (_, change) in zip(u, changes, strict=True))
    taps = [(plain.taps[site.name], v) for v in seen.perturbations]
    gradients = _gradients([error for error, _ in changes], [tap for tap, _ in taps], u)
    backward = squares = 0.0
    for gradient, (tap, v) in zip(gradients, taps, strict=True):
        if gradient is not None:
            product = gradient.double() * estimator.direction(site, v, tap).detach().double()
            backward += float(product.sum())
            squares += float(product.square().sum())
    return Sides(forward, backward, forward + math.sqrt(squares), [site.name])


def _gradients(errors: Sequence[Tensor], taps: Sequence[Tensor], u: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Return J_l^T u for every tap."""
    live = [(error, one) for error, one in zip(errors, u, strict=True) if error.requires_grad]
    if not live:
        return [None] * len(taps)
    outputs, given = zip(*live, strict=True)
    return torch.autograd.grad(outputs, taps, given, retain_graph=True, allow_unused=True)


def _signs(like: Tensor) -> Tensor:
    """Return random signs u for an error that no perturbation moves: right only if its gradients are zero too."""
    generator = torch.Generator(like.device).manual_seed(0)
    return torch.empty_like(like).bernoulli_(generator=generator) * 2 - 1


def _finding(sides: Sides, tolerance: float, suspect: str, *, name_module: bool) -> Finding:
    above = repr(sides.above) if sides.above else "the error"
    inside = f"in {suspect}" if suspect else f"between tap {', '.join(map(repr, sides.below))} and {above}"
    further = "" if name_module else " bpfree.verify(attachment, *inputs) names the module."
    return Finding(
        check="adjoint",
        where=sides.below[-1],
        found=f"the tangents of the estimating pass do not fit the gradients {inside}: <u, J v> = {sides.forward:.4g}, "
        f"<J^T u, v> = {sides.backward:.4g}, and rounding explains {tolerance * sides.scale:.1g}.",
        remedy="Look there for an autograd.Function whose jvp is not the transpose of its backward, and leave the jvp "
        "out (one is then made of its backward); or use a rule with no estimating pass (bpfree.DFA, bpfree.DKP)."
        + further,
    )

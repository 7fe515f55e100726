"""The dot-product test of every segment by itself: it holds the graph of one segment at a time.

At every tap the tangent is replaced by a perturbation v_l, and the graph begins anew. What arrives at the next tap, or
at the errors, is then sum_l J_l v_l, over the taps at which this segment begins, and for any u of its shape
<u, sum_l J_l v_l> = sum_l <J_l^T u, v_l>. A pass with tangents comes first. Of what arrives in it only signs are kept,
of groups of numbers: u has these signs, so that the left side is a sum in which little cancels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bpfree.axes.sites import Site
from bpfree.error_values import error_tensors
from bpfree.feedback.random import derived_seed
from bpfree.forward_mode.dual_numbers import join, split
from bpfree.forward_mode.eager import eager
from bpfree.forward_mode.estimate import Estimator, at_taps
from bpfree.forward_mode.grad_mode import silent_rules
from bpfree.forward_mode.own_pass import OwnPass
from bpfree.forward_mode.perturbations import perturbation
from bpfree.forward_mode.tangents import run_to
from bpfree.rerun.arguments import Call
from bpfree.rerun.checkpoints import checkpoints_around, checkpoints_off
from bpfree.rerun.snapshot import RunSnapshot
from bpfree.verification.local_adjoint import Precision

_GROUPS = 2**16
"""The largest number of signs that are kept of one tensor."""

_PARTS = 16
"""Products are made in so many parts, one after another."""


@dataclass(frozen=True)
class Sides:
    """Both sides of the law.

    Attributes:
        forward: <u, J v>.
        backward: <J^T u, v>.
        scale: The size that rounding errors are relative to: |<u, J v>| + |(J^T u) o v|.
        below: The names of the taps at which what was compared begins.
        above: The name of the tap where it ends; "" for the errors.
    """

    forward: float
    backward: float
    scale: float
    below: Sequence[str] = ()
    above: str = ""

    def agree(self, tolerance: float) -> bool:
        """Return whether the sides lie within ``tolerance`` times their scale."""
        return abs(self.forward - self.backward) <= tolerance * self.scale


def compare_segments(
    estimator: Estimator, call: Call, start: RunSnapshot, sites: Sequence[Site], seed: int, precision: Precision
) -> list[Sides]:
    """Return both sides of the law for every segment above a tap.

    Args:
        estimator: Says how taps are perturbed.
        call: The model's arguments.
        start: The state that a pass on them begins with.
        sites: The taps.
        seed: That of the perturbations.
        precision: Notes the precisions of the pass.
    """
    test = _SegmentTest(estimator, sites, seed)
    test.run_tangents(call, start)
    try:
        test.run_graphs(call, start, precision)
    except _TapInCheckpointError:
        with checkpoints_off():
            test.run_graphs(call, start, precision)
    return test.found


class _TapInCheckpointError(Exception):
    """A tap lies in a checkpoint, whose second run would begin in the middle of its first one."""


@dataclass(frozen=True)
class _Arrival:
    """The evidence of the tangents at one tensor.

    Attributes:
        forward: <u, J v>.
        signs: Bits that turn random signs into u, one for each group of numbers; None where no tangent arrives.
        is_finite: True if all tangents are numbers.
    """

    forward: float
    signs: Tensor | None
    is_finite: bool

    @classmethod
    def of(cls, tangent: Tensor | None, primal: Tensor, seed: int) -> _Arrival:
        if tangent is None:
            return cls(0.0, None, True)
        # In place: memory for one more tensor, and not for more.
        groups, rest = _grouped(_random_signs(primal, seed).mul_(tangent.detach()))
        sums = torch.cat([groups.sum(1, dtype=torch.float64), rest.sum(0, keepdim=True, dtype=torch.float64)])
        return cls(float(sums.abs().sum()), sums >= 0, bool(sums.isfinite().all()))

    def u(self, like: Tensor, seed: int) -> Tensor:
        """Return u in the shape of ``like``."""
        u = _random_signs(like, seed)
        if self.signs is not None:
            groups, rest = _grouped(u)
            signs = self.signs.to(u.dtype).mul_(2).sub_(1)
            groups.mul_(signs[:-1, None])
            rest.mul_(signs[-1])
        return u


def _random_signs(like: Tensor, seed: int) -> Tensor:
    generator = torch.Generator(like.device).manual_seed(seed)
    return perturbation((1, like.numel()), "rademacher", like, generator).view(like.shape)


def _grouped(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return views of a contiguous tensor: groups of equal length, at most ``_GROUPS``, and the rest."""
    flat = tensor.view(-1)
    size = -(-len(flat) // _GROUPS) or 1
    whole = len(flat) - len(flat) % size
    return flat[:whole].view(-1, size), flat[whole:]


def _products(left: Tensor, right: Tensor) -> Iterator[Tensor]:
    """Yield the products of numbers, in parts, in single precision at least."""
    for one, other in zip(left.chunk(_PARTS), right.chunk(_PARTS), strict=True):
        product = one * other
        yield product if product.dtype == torch.float64 else product.float()


class _Begin(torch.autograd.Function):
    """The numbers of a tap's output, with a graph that begins at a leaf without memory."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, numbers: Tensor) -> Tensor:
        """Return the numbers. What they were made of has its gradients already: they may be overwritten."""
        return numbers.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Return the leaf's gradient."""
        return grads[0], None


@dataclass
class _SegmentTest:
    estimator: Estimator
    sites: Sequence[Site]
    seed: int
    arrivals: dict[Any, _Arrival] = field(default_factory=dict)
    leaves: dict[str, tuple[Tensor, Site]] = field(default_factory=dict)
    found: list[Sides] = field(default_factory=list)

    def run_tangents(self, call: Call, start: RunSnapshot) -> None:
        """Run the model with tangents, and note what arrives at each tap and error."""

        def prepare(own: OwnPass) -> AbstractContextManager[None]:
            self.arrivals.clear()
            return at_taps(self.estimator.plan, own, self.sites, self._replace_tangent)

        tangents = self.estimator.dual_pass(call, prepare, start).tangents
        for number, at_place in enumerate(tangents):
            for path, tangent in at_place.items():
                key = number, path
                self.arrivals[key] = _Arrival.of(tangent, tangent, self._seed_at(key))

    def _replace_tangent(self, site: Site, output: Tensor) -> Tensor | None:
        if not torch._C._is_fwd_grad_enabled():  # what the model computes without gradients is a constant
            return None
        primal, tangent = split(output)
        self.arrivals[site.name] = _Arrival.of(tangent, primal, self._seed_at(site.name))
        return join(primal, self._v(site, primal))

    def run_graphs(self, call: Call, start: RunSnapshot, precision: Precision) -> None:
        """Run the model with a graph, and send u back from each tap as soon as it is reached."""
        self.leaves.clear()
        self.found.clear()
        plan = self.estimator.plan
        with ExitStack() as stack:
            stack.enter_context(start.restored(plan.model))
            stack.enter_context(silent_rules())
            stack.enter_context(eager())
            own = stack.enter_context(OwnPass(plan.model, plan.state))
            stack.enter_context(at_taps(plan, own, self.sites, self._end_segment))
            stack.enter_context(precision.noted())
            outputs = run_to(plan.model, own, list(plan.errors.values()), call)
        ends = {
            (number, path): error
            for number, output in enumerate(outputs)
            for path, error in error_tensors(output).items()
        }
        self._compare("", ends)

    def _end_segment(self, site: Site, output: Tensor) -> Tensor | None:
        if not torch.is_grad_enabled():
            return None
        if checkpoints_around().first:
            raise _TapInCheckpointError
        if self.leaves:
            self._compare(site.name, {site.name: output})
        leaf = output.detach().new_zeros(()).expand(output.shape).requires_grad_()
        self.leaves[site.name] = leaf, site
        begun: Tensor = _Begin.apply(leaf, output.detach())  # type: ignore[no-untyped-call]
        return begun

    def _compare(self, above: str, ends: dict[Any, Tensor]) -> None:
        """Compare both sides for the segment that ends in these tensors."""
        known = {key: tensor for key, tensor in ends.items() if key in self.arrivals}
        if not known or not all(self.arrivals[key].is_finite for key in known):
            return
        forward, backward, squares = sum(self.arrivals[key].forward for key in known), 0.0, 0.0
        below = []
        for (leaf, site), gradient in zip(self.leaves.values(), self._gradients(known), strict=True):
            if gradient is not None:
                for product in _products(gradient, self._v(site, leaf)):
                    backward += float(product.sum(dtype=torch.float64))
                    squares += float(product.square().sum(dtype=torch.float64))
                below.append(site.name)
        scale = forward + math.sqrt(squares)
        self.found.append(Sides(forward, backward, scale, below or list(self.leaves)[-1:], above))

    def _gradients(self, ends: dict[Any, Tensor]) -> Sequence[Tensor | None]:
        """Return J_l^T u for every leaf."""
        live = {key: tensor for key, tensor in ends.items() if tensor.requires_grad}
        leaves = [leaf for leaf, _ in self.leaves.values()]
        if not live:
            return [None] * len(leaves)
        u = [self.arrivals[key].u(tensor, self._seed_at(key)) for key, tensor in live.items()]
        # The graph goes with the tensors: what leads around a tap is a part of two segments.
        return torch.autograd.grad(list(live.values()), leaves, u, retain_graph=True, allow_unused=True)

    def _v(self, site: Site, like: Tensor) -> Tensor:
        return self.estimator.direction(site, self.estimator.draw(site, like, self.seed).make(), like)

    def _seed_at(self, key: Any) -> int:
        return derived_seed(self.seed, "u", str(key))

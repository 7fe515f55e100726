"""The best alignment of one matrix for all rows at a tap: is it lost in learning B, or in having only one B?

Direct feedback gives row t (a sample, a token) the signal e_t B, from its own error by one matrix. Backpropagation's
gradient is e_t J_t with a Jacobian of the row's own, and under attention it holds other tokens' errors besides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import bpfree
from bpfree.tabulate import tabulate


@dataclass(frozen=True)
class TapLimit:
    """One tap's alignment, and the best that its kind of signal can have.

    Attributes:
        name: The tap.
        learned: The mean cosine of the rule's signal e_t B and backpropagation's gradient g_t.
        limit: The same of e_t B*, where B* minimizes on other rows the squared distance to g_t, divided by the sizes of
            e_t and g_t: rows count alike, and one with hardly an error of its own, whose gradient comes from other
            rows, does not outweigh all others.
    """

    name: str
    learned: float
    limit: float


def alignment_limits(
    attachment: bpfree.Attachment, fit: Callable[[], Tensor], measured: Callable[[], Tensor], dims: int = 2
) -> tuple[TapLimit, ...]:
    """Compare a rule's alignment with that of the best matrix, at every tap below the error.

    Where ``limit`` is high and ``learned`` low, B has not been learned well: more estimates, or better ones, help.
    Where ``limit`` itself is low no rule with one matrix helps, and the tap belongs elsewhere.

    Args:
        attachment: A direct rule on its model, with one error; every tap has the error's rows.
        fit: Runs the model on one batch and returns the loss. It needs several times more rows than the error has
            numbers.
        measured: The same on another batch, where both cosines are taken.
        dims: The number of leading dimensions that are rows: 2 for tokens ``(N, T, d)``.

    Returns:
        A limit for every tap, in forward order.
    """
    errors, gradients = _exact(attachment, fit, dims)
    new_errors, new_gradients = _exact(attachment, measured, dims)
    learned = {tap.name: tap.cosine_mean for tap in bpfree.alignment(attachment, measured, jacobian=False).taps}
    found = []
    for name, gradient in gradients.items():
        sizes = (errors.norm(dim=1, keepdim=True) * gradient.norm(dim=1, keepdim=True)).sqrt()
        weights = torch.where(sizes > 0, 1 / sizes, 0)
        best = torch.linalg.lstsq(errors * weights, gradient * weights, driver="gelsd").solution
        cosines = torch.cosine_similarity(new_errors @ best, new_gradients[name], dim=1, eps=0)
        found.append(TapLimit(name, learned[name], float(cosines.nanmean())))
    return tuple(found)


def _exact(
    attachment: bpfree.Attachment, closure: Callable[[], Tensor], dims: int
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Return the error and backpropagation's gradient at every tap below it, in double precision, row by row."""
    plan = attachment.mechanism.plan
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda module, args, output: seen.update({name: output})

    places = {**plan.taps, plan.error_name: plan.error_module}
    handles = [module.register_forward_hook(keep(name)) for name, module in places.items()]
    try:
        with attachment.paused(), torch.enable_grad():
            gradients = torch.autograd.grad(closure(), list(seen.values()))
    finally:
        for handle in handles:
            handle.remove()
    rows = {name: given.double().flatten(0, dims - 1) for name, given in zip(seen, gradients, strict=True)}
    return rows.pop(plan.error_name), rows


def table(limits: tuple[TapLimit, ...]) -> str:
    """Return the limits as text."""
    rows = [[one.name, f"{one.learned:.3f}", f"{one.limit:.3f}", f"{one.learned / one.limit:.2f}"] for one in limits]
    return "\n".join(tabulate(["tap", "learned", "limit", "share"], rows))

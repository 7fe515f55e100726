"""The best alignment of one matrix for all rows at a tap: is it lost in learning B, or in having only one B?

Direct feedback gives row t (a sample, a token) the signal e_t B, from its own error by one matrix. Backpropagation's
gradient is e_t J_t with a Jacobian of the row's own, and under attention it holds other tokens' errors besides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

import bpfree
from bpfree.feedback.spatial import Form
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
        by_modes: The same of B* within so many spatial modes a channel, by their number.
        by_gates: The same of a mixture of matrices, by its number q of gates: e_t (B_0 + sum_i z_ti B_i), where z_t are
            the first q principal components of the tap's output in this row.
    """

    name: str
    learned: float
    limit: float
    by_modes: Mapping[int, float] = field(default_factory=dict)
    by_gates: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Pass:
    """One pass, in double precision, row by row.

    Attributes:
        errors: The error.
        outputs: The output of every tap below it.
        gradients: Backpropagation's gradient there.
        features: The shape of one row of that output.
    """

    errors: Tensor
    outputs: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]
    features: Mapping[str, tuple[int, ...]]


def alignment_limits(
    attachment: bpfree.Attachment,
    fit: Callable[[], Tensor],
    measured: Callable[[], Tensor],
    dims: int = 2,
    *,
    modes: Sequence[int] = (),
    gates: Sequence[int] = (),
) -> tuple[TapLimit, ...]:
    """Compare a rule's alignment with that of the best matrix, at every tap below the error.

    Where ``limit`` is high and ``learned`` low, B has not been learned well: more estimates, or better ones, help.
    Where ``limit`` itself is low no rule with one matrix helps, and the tap belongs elsewhere.

    Args:
        attachment: A direct rule on its model, with one error; every tap has the error's rows.
        fit: Runs the model on one batch and returns the loss. It needs several times more rows than the error has
            numbers, times ``q + 1`` for a mixture.
        measured: The same on another batch, where all cosines are taken.
        dims: The number of leading dimensions that are rows: 2 for tokens ``(N, T, d)``, 1 for samples ``(N, ...)``.
        modes: Numbers of spatial modes to look at, at taps ``(N, channels, *positions)``.
        gates: Numbers of gates to look at.

    Returns:
        A limit for every tap, in forward order.
    """
    known, new = _exact(attachment, fit, dims), _exact(attachment, measured, dims)
    learned = {tap.name: tap.cosine_mean for tap in bpfree.alignment(attachment, measured, jacobian=False).taps}
    found = []
    for name, gradient in known.gradients.items():
        truth = new.gradients[name]
        best = _best(known.errors, known.errors, gradient)
        forms = {count: Form.of(known.features[name], count) for count in modes if len(known.features[name]) > 1}
        found.append(
            TapLimit(
                name,
                learned[name],
                _cosine(new.errors @ best, truth),
                {count: _cosine(new.errors @ form.expand(form.reduce(best)), truth) for count, form in forms.items()},
                _by_gates(known, new, name, gates) if gates else {},
            )
        )
    return tuple(found)


def _by_gates(known: _Pass, new: _Pass, name: str, gates: Sequence[int]) -> dict[int, float]:
    """Return the cosine of the best mixture at a tap, by its number of gates."""
    z, new_z = _components(known.outputs[name], new.outputs[name], max(gates))
    found = {}
    for count in gates:
        mixture = _best(_mixed(known.errors, z[:, :count]), known.errors, known.gradients[name])
        found[count] = _cosine(_mixed(new.errors, new_z[:, :count]) @ mixture, new.gradients[name])
    return found


def _best(inputs: Tensor, errors: Tensor, gradient: Tensor) -> Tensor:
    """Return the matrix that makes the gradients of the inputs, all rows weighed alike."""
    sizes = (errors.norm(dim=1, keepdim=True) * gradient.norm(dim=1, keepdim=True)).sqrt()
    weights = torch.where(sizes > 0, 1 / sizes, 0)
    return torch.linalg.lstsq(inputs * weights, gradient * weights, driver="gelsd").solution


def _cosine(signals: Tensor, gradient: Tensor) -> float:
    return float(torch.cosine_similarity(signals, gradient, dim=1, eps=0).nanmean())


def _mixed(errors: Tensor, z: Tensor) -> Tensor:
    """Return the errors beside the errors times each gate, ``(N, c (q + 1))``."""
    return torch.cat([errors, *(errors * z[:, [i]] for i in range(z.shape[1]))], dim=1)


def _components(known: Tensor, new: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the first principal components of known rows, of variance 1, and the same numbers of new rows."""
    mean = known.mean(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        _, _, axes = torch.pca_lowrank(known - mean, q=min(count + 6, *known.shape), center=False, niter=4)
    z, new_z = (known - mean) @ axes[:, :count], (new - mean) @ axes[:, :count]
    return z / z.std(0), new_z / z.std(0)


def _exact(attachment: bpfree.Attachment, closure: Callable[[], Tensor], dims: int) -> _Pass:
    """Return what backpropagation sees at every tap below the error."""
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
    rows = {name: _rows(given, dims) for name, given in zip(seen, gradients, strict=True)}
    return _Pass(
        rows.pop(plan.error_name),
        {name: _rows(seen[name].detach(), dims) for name in rows},
        rows,
        {name: tuple(seen[name].shape[dims:]) for name in rows},
    )


def _rows(tensor: Tensor, dims: int) -> Tensor:
    return tensor.double().flatten(0, dims - 1).flatten(1)


def table(limits: Sequence[TapLimit]) -> str:
    """Return the limits as text."""
    modes = dict.fromkeys(count for one in limits for count in one.by_modes)
    gates = dict.fromkeys(count for one in limits for count in one.by_gates)
    heads = [*(f"{count} modes" for count in modes), *(f"{count} gates" for count in gates)]
    rows = []
    for one in limits:
        further = [*(one.by_modes.get(count) for count in modes), *(one.by_gates.get(count) for count in gates)]
        told = ["" if value is None else f"{value:.3f}" for value in further]
        rows.append([one.name, f"{one.learned:.3f}", f"{one.limit:.3f}", f"{one.learned / one.limit:.2f}", *told])
    return "\n".join(tabulate(["tap", "learned", "limit", "share", *heads], rows))

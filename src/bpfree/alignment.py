"""The alignment of a rule's signals with those of backpropagation, tap by tap."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bpfree.attachment import Attachment
from bpfree.axes.layout import batch_dims
from bpfree.axes.sites import Site, product
from bpfree.errors import TapSelectionError
from bpfree.feedback.projection import Projection
from bpfree.mechanisms.base import Mechanism
from bpfree.mechanisms.direct.alternation import Phase
from bpfree.rerun.snapshot import preserved
from bpfree.tabulate import tabulate
from bpfree.watched_pass import WatchedPass, observe, sites_of

_AFFORDABLE = 64
"""The numbers of error up to which the mean Jacobian is measured unasked."""


@dataclass(frozen=True)
class TapAlignment:
    """Agreement at one tap, over the rows (samples, tokens, nodes) of one batch.

    Attributes:
        name: The tap, or the module whose output is compared besides the taps.
        cosine_mean: Mean over the valid rows of cos(d_l, dL/dh_l); NaN where there is none.
        cosine_std: Standard deviation over the valid rows (of the batch, not of the mean).
        n_valid: The number of rows where neither signal is zero; only they have a cosine.
        both_zero: The fraction of rows where both signals are zero.
        norm_activation: Mean over rows of the norm of h_l.
        norm_signal: Mean over rows of the norm of the rule's signal d_l.
        norm_bp: Mean over rows of the norm of dL/dh_l.
        cosine_feedback: cos(B_l, E[J_l]) of the feedback matrix and the mean Jacobian E[do/dh_l] over the batch, the
            quantity that GrAPE moves (Caillon et al.); NaN where there is no matrix, or it was not asked for.
    """

    name: str
    cosine_mean: float
    cosine_std: float
    n_valid: int
    both_zero: float
    norm_activation: float
    norm_signal: float
    norm_bp: float
    cosine_feedback: float = math.nan


@dataclass(frozen=True)
class AlignmentReport:
    """The alignment of one batch; ``taps`` holds one entry for each tap, in forward order."""

    taps: tuple[TapAlignment, ...]

    def __str__(self) -> str:
        header = ["tap", "cosine", "std", "valid", "both zero", "|h|", "|d|", "|dL/dh|", "cos(B, E[J])"]
        rows = [
            [
                tap.name,
                f"{tap.cosine_mean:.3f}",
                f"{tap.cosine_std:.3f}",
                str(tap.n_valid),
                f"{tap.both_zero:.2f}",
            ]
            + [f"{norm:.2e}" for norm in (tap.norm_activation, tap.norm_signal, tap.norm_bp)]
            + ["" if math.isnan(tap.cosine_feedback) else f"{tap.cosine_feedback:.3f}"]
            for tap in self.taps
        ]
        return "\n".join(tabulate(header, rows))


def alignment(
    attachment: Attachment,
    closure: Callable[[], Tensor],
    *,
    jacobian: bool | None = None,
    layers: Sequence[str] = (),
) -> AlignmentReport:
    """Compare the rule's signal d_l with backpropagation's dL/dh_l at every tap, sample by sample.

    Both come from the same weights, mode, batch and dropout mask; weights, buffers, gradients and random state are
    left as they were, and no second copy of the model is made. The measure of Launay et al. 2019, section 2.2, with
    rows where a signal is zero counted apart. With ``alternate=p`` every row counts p times, once for each choice of
    taps that a step may cut: d_l is what arrives at the tap then, which carries on down where the tap is not cut.

    Args:
        attachment: The rule on its model.
        closure: Runs the model on a batch and returns the loss, one number. It is called twice (p + 1 times with
            ``alternate=p``), and must not call ``backward()``. Leave other random sources than torch's alone in it.
        jacobian: Also compare B_l with E[do/dh_l], which takes a backward pass for each number of the error; None
            does so for errors of at most 64 numbers.
        layers: Names of modules between taps whose outputs, tensors with the taps' rows before their features, are
            compared as well: what the signal of the tap above has become on its way down to them.

    Returns:
        The report; ``print`` it for a table.

    Raises:
        TapSelectionError: The forward pass reaches no tap; the model has no module of one of these names, it is not
            reached, or its output has other rows; or windows cross the layers, so that several signals pass them.
        OptionError: ``closure`` returns no loss.
    """
    places = _places(attachment, layers)
    passes = [_observe_phase(attachment, closure, places, phase) for phase in _phases(attachment)]
    rule = passes[-1]
    with preserved(attachment.model, attachment), attachment.paused():
        exact = observe(attachment, closure, places, jacobian=_with_jacobian(attachment, rule, jacobian))
    if not rule.names:
        raise TapSelectionError(
            "no tap got a signal, so there is nothing to compare: name taps that the pass reaches, attach(..., "
            "taps=...). Rules with no backward pass at all have none."
        )
    if unreached := set(layers) - set(rule.names):
        raise TapSelectionError(
            f"layers= names {', '.join(sorted(unreached))}, which the forward pass does not reach below the error."
        )
    of_feedback = _feedback_cosines(attachment, exact)
    signals = zip(*(seen.gradients for seen in passes), strict=True)
    columns = zip(rule.names, _rows_each(attachment, rule), rule.outputs, signals, exact.gradients, strict=True)
    return AlignmentReport(
        tuple(
            _compare(
                name,
                rows(h),
                torch.cat([rows(signal) for signal in of_phases]),
                torch.cat([rows(gradient)] * len(of_phases)),
                of_feedback.get(name, math.nan),
            )
            for name, rows, h, of_phases, gradient in columns
        )
    )


def _phases(attachment: Attachment) -> Sequence[Phase | None]:
    """Return the phases of alternating cuts; None alone where there are none."""
    alternation = getattr(attachment.mechanism, "alternation", None)
    return [None] if alternation is None else alternation.phases


def _observe_phase(
    attachment: Attachment, closure: Callable[[], Tensor], places: Mapping[str, nn.Module], phase: Phase | None
) -> WatchedPass:
    """Observe the rule's signals in a pass that cuts the taps of ``phase``; None where all passes cut the same."""
    mechanism: Any = attachment.mechanism
    held = nullcontext() if phase is None else mechanism.alternation.held(phase)
    with preserved(attachment.model, attachment), attachment.fixed(), mechanism.stored(), held:
        return observe(attachment, closure, places)


def _places(attachment: Attachment, layers: Sequence[str]) -> dict[str, nn.Module]:
    """Return the modules at whose outputs signals are compared, by name."""
    plan, modules = attachment.mechanism.plan, dict(attachment.model.named_modules())
    if layers and plan.window > 1:
        raise TapSelectionError("layers= names modules between taps, which several windows cross: leave it out here.")
    if unknown := [name for name in layers if name not in modules]:
        raise TapSelectionError(f"layers= names {', '.join(unknown)}, but the model has no such module.")
    ends = set(plan.errors.values())
    taps = {name: module for name, module in plan.taps.items() if module not in ends}
    return {name: modules[name] for name in layers} | taps


def _dims(attachment: Attachment, seen: WatchedPass) -> int:
    """Return the number of the taps' leading dimensions that are rows."""
    if seen.error is None:
        return 1
    plan = attachment.mechanism.plan
    return batch_dims(seen.error.shape, [tap.shape for tap in seen.at(plan.taps).values()], plan.batch_dims)


def _rows_each(attachment: Attachment, seen: WatchedPass) -> list[Callable[[Tensor], Tensor]]:
    """Return for every output the function that turns it, and its gradients, into rows.

    A tap has the rows of its site; other layers may have the taps' rows in another number of dimensions.
    """
    dims, taps, sites = _dims(attachment, seen), seen.at(attachment.mechanism.plan.taps), sites_of(attachment)
    counts = {sites[name].rows if name in sites else product(tap.shape[:dims]) for name, tap in taps.items()}
    found: list[Callable[[Tensor], Tensor]] = []
    for name, output in zip(seen.names, seen.outputs, strict=True):
        if name in sites:
            found.append(partial(_site_rows, sites[name]))
            continue
        fitting = [n for n in range(1, output.dim() + 1) if product(output.shape[:n]) in counts]
        if name not in taps and not fitting:
            raise TapSelectionError(
                f"layers= names {name}, whose output of shape {tuple(output.shape)} does not have the taps' "
                f"{'/'.join(map(str, sorted(counts)))} rows before its features."
            )
        found.append(partial(_rows, dims if name in taps else fitting[0]))
    return found


def _with_jacobian(attachment: Attachment, seen: WatchedPass, asked: bool | None) -> bool:
    errors = {name: error for name, error in seen.errors.items() if error is not None}
    if not isinstance(attachment.feedback, Projection) or not errors or asked is False:
        return False
    senders = attachment.mechanism.by_error
    numbers = sum(product(error.shape) // _error_rows(senders.get(name)) for name, error in errors.items())
    return bool(asked) or numbers <= _AFFORDABLE


def _error_rows(sender: Mechanism | None) -> int:
    """Return the number of rows of an error in the last pass."""
    sites = () if sender is None else sender.sites
    return max([1, *(product(site.error.shape) for site in sites)])


def _feedback_cosines(attachment: Attachment, exact: WatchedPass) -> dict[str, float]:
    """Return cos(B_l, E[J_l]) by tap; of all errors above a tap together, whose signals add up."""
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for error, sender in attachment.mechanism.by_error.items():
        found = exact.jacobians.get(error, {})
        for site in sender.sites if found else ():
            if site.name in found:
                pairs.setdefault(site.name, []).append((sender.feedback.matrix(site), found[site.name]))
    return {name: _cosine(*(torch.cat(parts) for parts in zip(*known, strict=True))) for name, known in pairs.items()}


def _cosine(B: Tensor, J: Tensor) -> float:
    B, J = B.detach().double().flatten(), J.double().flatten()
    return float(B @ J / (B.norm() * J.norm()))


def _site_rows(site: Site, tensor: Tensor) -> Tensor:
    return site.rows_of(tensor.detach().double())


def _rows(dims: int, tensor: Tensor) -> Tensor:
    # In double precision: a signal of 1e-30 has a direction too.
    return tensor.detach().double().reshape(product(tensor.shape[:dims]), -1)


def _compare(name: str, activation: Tensor, signal: Tensor, exact: Tensor, of_feedback: float) -> TapAlignment:
    of_signal, of_exact = signal.norm(dim=1), exact.norm(dim=1)
    valid = (of_signal > 0) & (of_exact > 0)
    cosines = ((signal * exact).sum(1) / (of_signal * of_exact))[valid]
    return TapAlignment(
        name=name,
        cosine_mean=float(cosines.mean()),
        cosine_std=float((cosines - cosines.mean()).square().mean().sqrt()),
        n_valid=int(valid.sum()),
        both_zero=float(((of_signal == 0) & (of_exact == 0)).double().mean()),
        norm_activation=float(activation.norm(dim=1).mean()),
        norm_signal=float(of_signal.mean()),
        norm_bp=float(of_exact.mean()),
        cosine_feedback=of_feedback,
    )

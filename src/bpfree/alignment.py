"""How well a rule's signals agree with backpropagation's, tap by tap."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bpfree.attachment import Attachment
from bpfree.errors import TapSelectionError
from bpfree.layout import batch_dims
from bpfree.preserve import preserved
from bpfree.tabulate import tabulate
from bpfree.taps import product


@dataclass(frozen=True)
class TapAlignment:
    """Agreement at one tap, over the rows (samples, tokens, nodes) of one batch.

    Attributes:
        name: The tap.
        cosine_mean: Mean over the valid rows of cos(d_l, dL/dh_l); NaN where there is none.
        cosine_std: Standard deviation over the valid rows (of the batch, not of the mean).
        n_valid: The number of rows where neither signal is zero; only they have a cosine.
        both_zero: The fraction of rows where both signals are zero.
        norm_activation: Mean over rows of the norm of h_l.
        norm_signal: Mean over rows of the norm of the rule's signal d_l.
        norm_bp: Mean over rows of the norm of dL/dh_l.
    """

    name: str
    cosine_mean: float
    cosine_std: float
    n_valid: int
    both_zero: float
    norm_activation: float
    norm_signal: float
    norm_bp: float


@dataclass(frozen=True)
class AlignmentReport:
    """The alignment of one batch; ``taps`` holds one entry for each tap, in forward order."""

    taps: tuple[TapAlignment, ...]

    def __str__(self) -> str:
        header = ["tap", "cosine", "std", "valid", "both zero", "|h|", "|d|", "|dL/dh|"]
        rows = [
            [
                tap.name,
                f"{tap.cosine_mean:.3f}",
                f"{tap.cosine_std:.3f}",
                str(tap.n_valid),
                f"{tap.both_zero:.2f}",
            ]
            + [f"{norm:.2e}" for norm in (tap.norm_activation, tap.norm_signal, tap.norm_bp)]
            for tap in self.taps
        ]
        return "\n".join(tabulate(header, rows))


@dataclass
class _Pass:
    """What one forward and backward pass showed at the taps."""

    names: list[str] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)
    error: Tensor | None = None


def alignment(attachment: Attachment, closure: Callable[[], Tensor]) -> AlignmentReport:
    """Compare the rule's signal d_l with backpropagation's dL/dh_l at every tap, sample by sample.

    Both come from the same weights, mode, batch and dropout mask; weights, buffers, gradients and random state are
    left as they were, and no second copy of the model is made. The measure of Launay et al. 2019, section 2.2, with
    rows where a signal is zero counted apart.

    Args:
        attachment: The rule on its model.
        closure: Runs the model on a batch and returns the loss, one number. It is called twice, and must not call
            ``backward()``. Leave other random sources than torch's alone in it.

    Returns:
        The report; ``print`` it for a table.

    Raises:
        TapSelectionError: The forward pass reaches no tap.
    """
    with preserved(attachment.model, attachment), attachment.fixed():
        rule = _observe(attachment, closure)
    with preserved(attachment.model, attachment), attachment.paused():
        exact = _observe(attachment, closure)
    if not rule.names:
        raise TapSelectionError("no tap was reached, so there is nothing to compare: name taps, attach(..., taps=...).")
    dims = 1 if rule.error is None else batch_dims(rule.error, rule.outputs, attachment.mechanism.plan.batch_dims)
    columns = zip(rule.names, rule.outputs, rule.gradients, exact.gradients, strict=True)
    return AlignmentReport(tuple(_compare(name, *(_rows(tensor, dims) for tensor in rest)) for name, *rest in columns))


def _observe(attachment: Attachment, closure: Callable[[], Tensor]) -> _Pass:
    """Run the closure with every tap watched, and send the loss back as far as the taps alone."""
    seen = _Pass()
    with _watching(attachment, seen), torch.enable_grad():
        loss = closure()
    if seen.outputs:
        pairs = zip(_arriving(attachment, loss, seen.outputs), seen.outputs, strict=True)
        seen.gradients = [torch.zeros_like(tap) if given is None else given for given, tap in pairs]
    return seen


def _arriving(attachment: Attachment, loss: Tensor, outputs: list[Tensor]) -> Sequence[Tensor | None]:
    """What comes down to the taps' outputs."""
    mechanism: Any = attachment.mechanism
    if mechanism.plan.window == 1 or not mechanism.active:
        return torch.autograd.grad(loss, outputs, allow_unused=True)
    # Windows end in parameters and not in the taps' outputs. What is above the error, or ends the model, is in neither.
    learners = [parameter for parameter in attachment.model.parameters() if parameter.requires_grad]
    found: Sequence[Tensor | None] = torch.autograd.grad(loss, [*outputs, *learners], allow_unused=True)[: len(outputs)]
    carried = [*mechanism.carried, *[None] * (len(outputs) - len(mechanism.carried))]
    return [signal if signal is not None else given for signal, given in zip(carried, found, strict=True)]


@contextmanager
def _watching(attachment: Attachment, seen: _Pass) -> Generator[None]:
    plan = attachment.mechanism.plan

    def watch(name: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def keep(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            calls = sum(known.partition("#")[0] == name for known in seen.names)
            seen.names.append(f"{name}#{calls + 1}" if calls else name)
            seen.outputs.append(output if output.requires_grad else output.detach().requires_grad_())
            # A copy goes on, so that an in-place operation behind the tap changes neither h nor its place in the graph.
            return seen.outputs[-1].clone()

        return keep

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        seen.error = output if isinstance(output, Tensor) else None

    # Before the rule's own hooks, which hand on a detached tensor.
    handles = [
        module.register_forward_hook(watch(name), prepend=True)
        for name, module in plan.taps.items()
        if module is not plan.error_module
    ]
    handles.append(plan.error_module.register_forward_hook(leave, prepend=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rows(tensor: Tensor, dims: int) -> Tensor:
    # In double precision: a signal of 1e-30 has a direction too.
    return tensor.detach().double().reshape(product(tensor.shape[:dims]), -1)


def _compare(name: str, activation: Tensor, signal: Tensor, exact: Tensor) -> TapAlignment:
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
    )

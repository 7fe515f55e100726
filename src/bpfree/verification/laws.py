"""The law of every rule: with exact signals at its taps a cut model learns what backpropagation teaches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from bpfree.verification.finding import Finding

_PART = 2**16
"""The number of a gradient's numbers that are projected at a time."""

_NEGLIGIBLE = 1e-3
"""Gradients this much smaller than the largest one are compared with it: those of a bias before batch normalization."""


def bound(dtype: torch.dtype) -> float:
    """Return the difference allowed between two computations of the same numbers, relative to these numbers.

    It is the square root of the precision, because rounding adds up over layers and rows, but never to more than that;
    for half precision it is a tenth.
    """
    return min(math.sqrt(torch.finfo(dtype).eps), 0.1)


def compare_outputs(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[Finding]:
    """Compare the model's outputs under the rule with those of its plain forward pass, error by error."""
    return [
        Finding(
            "outputs",
            name or "(output)",
            f"with the rule the model computes something else than without it ({off:.1e} of its size; bound "
            f"{bound(plain.dtype):.0e}).",
            "It may differentiate within its own forward pass, or look at grad_fn or requires_grad there: put the taps "
            "(taps=...) where it does not, or train it by bpfree.BP().",
        )
        for name, plain in expected.items()
        if name in found and (off := relative(found[name], plain)) > bound(plain.dtype)
    ]


def relative(found: Tensor, expected: Tensor) -> float:
    """Return |found - expected| / |expected|; infinite for other shapes. NaN in the same places is no difference."""
    if found.shape != expected.shape:
        return float("inf")
    difference = (found.detach() - expected).nan_to_num().norm()
    return float(difference / expected.nan_to_num().norm().clamp_min(torch.finfo(expected.dtype).tiny))


@dataclass
class GradientSketch:
    """The gradients of one backward pass, as far as they must be known to compare them: without their memory.

    Attributes:
        norms: By parameter, the norm.
        projections: The product with a fixed random vector of norm about 1 for each entry.
        is_open: True while gradients are being noted. A hook that Ctrl-C has left behind must not touch later ones.
    """

    norms: dict[str, float]
    projections: dict[str, float]
    is_open: bool = False

    @classmethod
    def of(
        cls,
        outputs: Sequence[Tensor],
        directions: Sequence[Tensor],
        parameters: Mapping[str, Tensor],
        others: Sequence[Tensor] = (),
    ) -> tuple[GradientSketch, Sequence[Tensor | None]]:
        """Send ``directions`` back from ``outputs``, and drop each parameter's gradient as it comes.

        Args:
            outputs: Where the backward pass begins.
            directions: The gradients there.
            parameters: The parameters whose gradients are sketched, by name.
            others: Tensors whose gradients are kept.

        Returns:
            The sketch, and the gradients of ``others``; None where there is none.
        """
        sketch, handles = cls({}, {}, is_open=True), []
        try:
            for name, parameter in parameters.items():
                handles.append(parameter.register_hook(partial(sketch._add, name)))  # type: ignore[no-untyped-call]
            wanted = [*others, *parameters.values()]
            arrived = torch.autograd.grad(outputs, wanted, directions, allow_unused=True, materialize_grads=False)
        finally:
            sketch.is_open = False
            for handle in handles:
                handle.remove()
        return sketch, arrived[: len(others)]

    def _add(self, name: str, gradient: Tensor) -> Tensor | None:
        """Note a gradient, and return zeros without memory in its place."""
        if not self.is_open:
            return None
        if name not in self.norms:  # a window's gradients come once from within and once as they are handed on
            self.norms[name], self.projections[name] = float(gradient.norm()), _projected(gradient)
        if type(gradient) is not Tensor or gradient.layout is not torch.strided:
            return None
        return gradient.new_zeros(()).expand(gradient.shape)

    def compare(self, exact: GradientSketch, dtype: torch.dtype) -> list[Finding]:
        """Compare them with backpropagation's."""
        largest = max(exact.norms.values(), default=0.0)
        found = []
        for name, norm in exact.norms.items():
            scale = max(norm, _NEGLIGIBLE * largest)
            if not scale:
                continue
            if name not in self.norms:
                off = norm / scale
            else:
                off = max(abs(self.norms[name] - norm), abs(self.projections[name] - exact.projections[name])) / scale
            if off > bound(dtype):
                found.append(_untaught(name, off, dtype, there=name in self.norms))
        return found


def _untaught(name: str, off: float, dtype: torch.dtype, *, there: bool) -> Finding:
    what = f"its gradient is off by {off:.1e} (bound {bound(dtype):.0e})" if there else "it gets no gradient"
    return Finding(
        "taught",
        name,
        f"with exact signals at every tap {what}, beside backpropagation's.",
        "Some way to it leads through a part that runs without a graph, or differentiates by itself: tap that part as "
        "a whole (taps=...), or train the model by bpfree.BP().",
    )


def _projected(gradient: Tensor) -> float:
    # Drawn anew each time: the same numbers for the same shape.
    generator = torch.Generator(gradient.device).manual_seed(gradient.numel())
    dense = gradient.to_dense() if gradient.is_sparse else gradient
    dense = torch.view_as_real(dense.resolve_conj()) if dense.is_complex() else dense
    # A part at a time: the directions of a large layer would take as much memory as its gradient.
    total = 0.0
    for part in torch.split(dense.reshape(-1), _PART):
        direction = torch.randn(part.shape, generator=generator, device=part.device, dtype=torch.float32)
        total += float(part.to(direction) @ direction)
    return total

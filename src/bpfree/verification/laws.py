"""The law of every rule: with exact signals at its taps a cut model learns what backpropagation teaches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bpfree.verification.finding import Finding

_NEGLIGIBLE = 1e-3
"""Gradients this much smaller than the largest one are compared with it: those of a bias before batch normalization."""


def bound(dtype: torch.dtype) -> float:
    """How far two ways of computing the same numbers may lie apart, relative to these.

    The square root of the precision, for rounding adds up over layers and rows and never to more than that; a tenth for
    half precision.
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
    """|found - expected| / |expected|; infinite for other shapes. NaN in the same places is no difference."""
    if found.shape != expected.shape:
        return float("inf")
    difference = (found.detach() - expected).nan_to_num().norm()
    return float(difference / expected.nan_to_num().norm().clamp_min(torch.finfo(expected.dtype).tiny))


@dataclass(frozen=True)
class Gradients:
    """The gradients of one backward pass, as far as they must be known to compare them: without their memory.

    Attributes:
        norms: By parameter, the norm.
        projections: The product with a fixed random vector of norm about 1 for each entry.
    """

    norms: Mapping[str, float]
    projections: Mapping[str, float]

    @classmethod
    def of(cls, gradients: Mapping[str, Tensor | None]) -> Gradients:
        """Reduce the gradients, one a parameter; None where there is none."""
        there = {name: gradient.detach() for name, gradient in gradients.items() if gradient is not None}
        norms = {name: float(gradient.norm()) for name, gradient in there.items()}
        return cls(norms, {name: _projected(gradient) for name, gradient in there.items()})

    def compare(self, exact: Gradients, dtype: torch.dtype) -> list[Finding]:
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
    direction = torch.randn(dense.shape, generator=generator, device=dense.device, dtype=torch.float32)
    return float((dense * direction.to(dense.dtype)).sum())

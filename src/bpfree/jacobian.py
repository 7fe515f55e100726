"""The mean Jacobian of the output with respect to a tap, by backpropagation: what learned feedback should arrive at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bpfree.axes.sites import product
from bpfree.forward_mode.perturbations import perturbation


def mean_jacobians(output: Tensor, taps: Sequence[Tensor], dims: int) -> list[Tensor]:
    """E[do/dh_l] over the rows of a batch, shape ``(c, n_l)``, for every tap.

    Where rows do not touch each other it is exact. Where they do (tokens under attention, batch statistics) it is an
    unbiased estimate of the mean diagonal block do_b/dh_b: rows go with random signs, and the other blocks cancel.

    Args:
        output: Where the error is taken, shape ``(N.., c..)``, with its graph, which is kept.
        taps: The taps' outputs in that graph, shape ``(N.., *features)``.
        dims: The number of leading dimensions that are rows.
    """
    rows = product(output.shape[:dims])
    flat = output.reshape(rows, -1)
    signs = perturbation((rows, 1), "rademacher", flat, torch.Generator(flat.device).manual_seed(0))
    found: list[list[Tensor]] = [[] for _ in taps]
    for component in (flat * signs).sum(0):
        gradients = torch.autograd.grad(component, taps, retain_graph=True, allow_unused=True)
        for tap, gradient, kept in zip(taps, gradients, found, strict=True):
            given = torch.zeros_like(tap) if gradient is None else gradient
            kept.append((given.reshape(rows, -1) * signs).mean(0))
    return [torch.stack(kept).detach() for kept in found]

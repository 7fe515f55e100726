"""Make the colours of rays of what a field is at points on them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_ENDLESS = 1e10
"""The length behind the last point: a ray that meets density there ends there."""


class Rendered(NamedTuple):
    """What rays show.

    Attributes:
        colours: Red, green and blue, ``(n, 3)``, from 0 to 1.
        weights: The part of each point in its ray's colour, ``(n, samples)``; the sum of a ray's is at most 1.
        opacity: That sum, ``(n,)``: 0 where nothing is seen.
        depth: The mean of t with these weights, ``(n,)``; 0 where nothing is seen.
    """

    colours: Tensor
    weights: Tensor
    opacity: Tensor
    depth: Tensor


def composite(raw: Tensor, t: Tensor, directions: Tensor, *, noise: float = 0.0, background: float = 0.0) -> Rendered:
    r"""Return the colours of rays, by the quadrature of Mildenhall et al. 2020, equation 3.

    $$C = \sum_i T_i (1 - e^{-\sigma_i \delta_i}) c_i, \quad T_i = e^{-\sum_{j < i} \sigma_j \delta_j}$$

    $\delta_i$ is the distance between point i and the next one, and has no end behind the last one.

    Args:
        raw: A field's output at the points, ``(n, samples, 4)``: c before its sigmoid, then sigma before its ReLU.
        t: The points' places on the rays, ascending, ``(n, samples)``.
        directions: The rays' directions, whose lengths are the unit of t, ``(n, 3)``.
        noise: The standard deviation of normal noise that is added to sigma before its ReLU, drawn from the global
            random state.
        background: The grey that is seen behind everything, 0 for black and 1 for white.
    """
    density = raw[..., 3]
    if noise:
        density = density + noise * torch.randn_like(density)
    lengths = torch.cat([t.diff(dim=1), torch.full_like(t[:, :1], _ENDLESS)], dim=1)
    passed = density.relu() * lengths * directions.norm(dim=1, keepdim=True)
    # The sum before each point; not the whole sum less the point's own, which loses all digits behind an endless one.
    before = torch.cat([torch.zeros_like(passed[:, :1]), passed[:, :-1].cumsum(1)], dim=1)
    weights = (-before).exp() * -torch.expm1(-passed)
    opacity = weights.sum(1)
    colours = (weights[..., None] * raw[..., :3].sigmoid()).sum(1) + background * (1 - opacity)[:, None]
    return Rendered(colours, weights, opacity, (weights * t).sum(1))

"""Normalized device coordinates: the space before a camera that looks along -z, as a cube.

Forward-facing scenes reach to infinity. In these coordinates they end at a distance of 1, and points are dense where
cameras see them large. Source: Mildenhall et al. 2020, appendix C.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bpfree.lab.rendering.rays import Rays


def to_ndc(rays: Rays, scale: tuple[float, float], near: float = 1.0) -> Rays:
    r"""Map rays to normalized device coordinates, where t = 0 is at the plane z = -``near`` and t = 1 at infinity.

    A point goes to $(-s_x x / z, -s_y y / z, 1 + 2 n / z)$.

    Args:
        rays: Rays that go towards -z.
        scale: ``(s_x, s_y)``: twice the focal length over the width, and over the height, of the picture.
        near: n, the distance of the plane at which rays begin.

    Returns:
        The same rays, with the same ``views``, from 0 to 1.
    """
    directions = rays.directions
    start = -(near + rays.origins[:, 2:]) / directions[:, 2:]
    origins = rays.origins + start * directions
    x, y, z = origins.split(1, dim=1)
    dx, dy, dz = directions.split(1, dim=1)
    sx, sy = scale
    return Rays(
        torch.cat([-sx * x / z, -sy * y / z, 1 + 2 * near / z], dim=1),
        torch.cat([-sx * (dx / dz - x / z), -sy * (dy / dz - y / z), -2 * near / z], dim=1),
        rays.views,
        torch.zeros_like(z),
        torch.ones_like(z),
    )


def from_ndc(points: Tensor, scale: tuple[float, float], near: float = 1.0) -> Tensor:
    """Return the points ``(..., 3)`` of the scene whose normalized device coordinates these are.

    Args:
        points: ``(..., 3)``; the last number is below 1, which is infinity.
        scale: See :func:`to_ndc`.
        near: See :func:`to_ndc`.
    """
    u, v, w = points.unbind(-1)
    z = 2 * near / (w - 1)
    sx, sy = scale
    return torch.stack([-u * z / sx, -v * z / sy, z], dim=-1)

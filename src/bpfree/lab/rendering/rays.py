"""Rays: where they begin, where they go, and between which distances points are taken on them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NUMBERS = 11
"""The numbers of a packed ray."""


class Rays(NamedTuple):
    """Rays ``origins + t * directions``, with t from ``near`` to ``far``.

    Attributes:
        origins: ``(n, 3)``.
        directions: ``(n, 3)``, of any length: it is the unit of t.
        views: ``(n, 3)``, of length 1: the directions in which the scene is seen. They are those of ``directions``,
            but for rays that were mapped to other coordinates.
        near: ``(n, 1)``, the smallest t.
        far: ``(n, 1)``, the largest.
    """

    origins: Tensor
    directions: Tensor
    views: Tensor
    near: Tensor
    far: Tensor

    @classmethod
    def unpack(cls, packed: Tensor) -> Rays:
        """Return the rays that :meth:`pack` has made one tensor of, ``(n, 11)``."""
        return cls(*packed.split([3, 3, 3, 1, 1], dim=1))

    def pack(self) -> Tensor:
        """Return all numbers as one tensor ``(n, 11)``, so that batches of rays are drawn as those of anything else."""
        return torch.cat(self, dim=1)

    def points(self, t: Tensor) -> Tensor:
        """Return the points at ``t``, ``(n, samples)``, on each ray: ``(n, samples, 3)``."""
        return self.origins[:, None] + t[..., None] * self.directions[:, None]

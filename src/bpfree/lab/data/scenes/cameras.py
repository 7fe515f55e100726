"""Cameras: where they stand, where they look, and the rays of their pixels.

A camera looks along its own -z, its x points right and its y up, as in OpenGL and Blender. A pose maps its coordinates
to those of the scene. The middle of the first pixel, at the top left, lies half a pixel from the picture's corner.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bpfree.lab.errors import DataError, SettingsError
from bpfree.lab.rendering.ndc import to_ndc
from bpfree.lab.rendering.rays import Rays

_TOLERANCE = 1e-4
"""The largest distance of the inner products of a rotation's columns from 0 and 1; float32 has 1e-6."""


@dataclass(frozen=True)
class Cameras:
    """The cameras of some views of one size.

    Attributes:
        poses: Rotation and position, float64 ``(n, 3, 4)``.
        focal: The focal lengths in pixels, to the right and down, float64 ``(n, 2)``.
        centre: The place in the picture where the camera looks, in pixels from its top left corner, ``(n, 2)``.
        width: Pixels in a row.
        height: Rows.
        near: The smallest t of rays.
        far: The largest.
        ndc: The scale of normalized device coordinates, see :func:`bpfree.lab.rendering.ndc.to_ndc`; None gives rays in
            the scene's own.
    """

    poses: Tensor
    focal: Tensor
    centre: Tensor
    width: int
    height: int
    near: float
    far: float
    ndc: tuple[float, float] | None = None

    def __len__(self) -> int:
        return len(self.poses)

    def take(self, index: Tensor) -> Cameras:
        """Return the cameras at ``index``, int64 ``(k,)``."""
        return replace(self, poses=self.poses[index], focal=self.focal[index], centre=self.centre[index])

    @property
    def pixels(self) -> int:
        """The number of pixels of a view."""
        return self.width * self.height

    def resized(self, width: int) -> Cameras:
        """Return the same cameras with another number of pixels in a row, and as many rows as show the same.

        Raises:
            SettingsError: There would be no pixels.
        """
        height = round(self.height * width / self.width)
        if min(width, height) < 1:
            raise SettingsError(f"a view {width} pixels wide would be {height} high: both must be at least 1.")
        scale = torch.tensor([width / self.width, height / self.height], dtype=self.focal.dtype)
        return replace(self, width=width, height=height, focal=self.focal * scale, centre=self.centre * scale)

    def rays(self, index: Tensor) -> Rays:
        """Return the rays of pixels, float32. A direction is as long as makes its part along the camera's axis 1.

        Args:
            index: The pixels' numbers, int64 ``(k,)``: row by row, view after view.
        """
        view, pixel = index // self.pixels, index % self.pixels
        place = torch.stack([pixel % self.width, pixel // self.width], dim=1) + 0.5
        right, down = ((place - self.centre[view]) / self.focal[view]).unbind(1)
        own = torch.stack([right, -down, -torch.ones_like(right)], dim=1)
        pose, ones = self.poses[view], torch.ones_like(own[:, :1])
        directions = (pose[:, :, :3] @ own[:, :, None])[:, :, 0]
        views = directions / directions.norm(dim=1, keepdim=True)
        rays = Rays(pose[:, :, 3], directions, views, self.near * ones, self.far * ones)
        if self.ndc is not None:
            rays = to_ndc(rays, self.ndc)
        return Rays(*(part.float() for part in rays))


def require_pose(matrix: np.ndarray, where: str) -> None:
    """Raise DataError unless ``matrix`` is a rotation beside a position, ``(3, 4)``, or ``(4, 4)`` above 0 0 0 1.

    Args:
        matrix: float64.
        where: The file and the view, for the message.
    """
    if matrix.shape not in ((3, 4), (4, 4)):
        raise DataError(f"{where}: a pose has 4 x 4 numbers, or 3 x 4; this has the shape {matrix.shape}.")
    if not np.isfinite(matrix).all():
        raise DataError(f"{where}: its pose holds numbers that are not finite.")
    if matrix.shape == (4, 4) and not np.allclose(matrix[3], [0, 0, 0, 1], atol=_TOLERANCE):
        raise DataError(f"{where}: the last row of a pose is 0 0 0 1; this is {' '.join(f'{x:g}' for x in matrix[3])}.")
    rotation = matrix[:3, :3]
    wrong = float(np.abs(rotation.T @ rotation - np.eye(3)).max())
    if wrong > _TOLERANCE:
        raise DataError(
            f"{where}: its pose is no rotation: the inner products of its columns are off by {wrong:.2g}. Export it "
            "without scale or shear."
        )
    if np.linalg.det(rotation) < 0:
        raise DataError(f"{where}: its pose is a reflection, no rotation: one axis points the wrong way.")

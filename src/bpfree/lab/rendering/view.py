"""Render whole views, at any resolution, in bounded memory."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from bpfree.lab.data.scenes.cameras import Cameras
from bpfree.lab.rendering.rays import Rays

_RAYS = 2**12
"""Rays that are made at once."""


class Renders(Protocol):
    """A model that renders rays, as :class:`bpfree.lab.models.NeRF` does.

    One whose surface shall be drawn, too, has the attribute ``field``, see
    :class:`bpfree.lab.rendering.passes.Field`.
    """

    def render(self, rays: Rays, *, dual: bool = False) -> dict[str, Tensor]:
        """Return ``colours`` ``(n, 3)``, ``depth`` ``(n,)`` and ``opacity`` ``(n,)`` of rays."""


def render_view(model: Renders, cameras: Cameras, number: int, *, dual: bool = False) -> dict[str, Tensor]:
    """Render what one camera sees. Beside the result, memory does not grow with its size.

    Args:
        model: The model.
        cameras: The cameras; ``cameras.resized(width)`` has another resolution.
        number: Which of them.
        dual: Average the coarse and the fine field (NeRF-Dual).

    Returns:
        ``colours`` ``(height, width, 3)``, ``depth`` ``(height, width)``, 0 where nothing is seen, and ``opacity``
        ``(height, width)``.
    """
    found: dict[str, Tensor] = {}
    for start in range(0, cameras.pixels, _RAYS):
        own = torch.arange(start, min(start + _RAYS, cameras.pixels))
        for name, part in model.render(cameras.rays(number * cameras.pixels + own), dual=dual).items():
            # Written into one tensor: parts that are put together at the end would stand in memory twice.
            whole = found.setdefault(name, part.new_empty(cameras.pixels, *part.shape[1:]))
            whole[start : start + len(part)] = part
    return {name: whole.unflatten(0, (cameras.height, cameras.width)) for name, whole in found.items()}

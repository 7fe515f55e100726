"""Render rays: a coarse pass finds where something is, a fine pass looks there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from bpfree.lab.errors import SettingsError
from bpfree.lab.rendering.rays import Rays
from bpfree.lab.rendering.sampling import refine, spread_evenly
from bpfree.lab.rendering.volume import Rendered, composite

CHUNK = 2**16
"""The number of points that a field is asked at once without a graph, by default."""


class Field(Protocol):
    """Colour and density in space."""

    def __call__(self, points: Tensor, views: Tensor) -> Tensor:
        """Return raw colour and density ``(points, 4)`` at ``(points, 3)``, seen along ``views``, ``(points, 3)``."""


@dataclass(frozen=True, kw_only=True)
class Passes:
    """How rays are sampled and rendered.

    Args:
        samples: Points on a ray in the coarse pass, or in the only one.
        fine_samples: Further points in the fine pass, which sees those of the coarse pass too; 0 for one pass alone.
        noise: The standard deviation of noise on raw densities in training.
        background: The grey behind everything, 0 for black and 1 for white.
    """

    samples: int = 64
    fine_samples: int = 128
    noise: float = 0.0
    background: float = 0.0

    def __post_init__(self) -> None:
        if self.samples < 3:
            raise SettingsError(f"samples {self.samples} must be at least 3: the fine pass looks between them.")
        if self.fine_samples < 0:
            raise SettingsError(f"fine_samples {self.fine_samples} must not be negative.")
        if not 0 <= self.noise < math.inf:
            raise SettingsError(f"noise {self.noise} must be 0 or a positive number.")
        if not 0 <= self.background <= 1:
            raise SettingsError(f"background {self.background} must lie between 0, black, and 1, white.")


def render(
    rays: Rays, coarse: Field, fine: Field | None, passes: Passes, *, training: bool, dual: bool = False
) -> list[Rendered]:
    """Render rays by one field, or by a coarse and a fine one.

    Args:
        rays: The rays.
        coarse: The field of the first pass.
        fine: The field of the second pass; None for one pass alone.
        passes: How rays are sampled.
        training: Draw places on rays, and noise; otherwise nothing is drawn.
        dual: Let the second pass see the mean of both fields (NeRF-Dual of Launay et al. 2020, appendix E).

    Returns:
        What each pass shows; the last is the picture.

    Raises:
        SettingsError: ``dual`` without a fine field.
    """
    if dual and fine is None:
        raise SettingsError("dual: a model with one field has nothing to average. Leave dual out.")
    noise = passes.noise if training else 0.0
    t = spread_evenly(rays.near, rays.far, passes.samples, drawn=training)
    found = [composite(_ask(coarse, rays, t), t, rays.directions, noise=noise, background=passes.background)]
    if fine is not None:
        t = refine(t, found[0].weights, passes.fine_samples, drawn=training)
        raw = _ask(fine, rays, t)
        if dual:
            raw = (raw + _ask(coarse, rays, t)) / 2
        found.append(composite(raw, t, rays.directions, noise=noise, background=passes.background))
    return found


def in_chunks(rays: Rays, passes: Passes, chunk: int = CHUNK) -> Iterator[Rays]:
    """Yield the rays in groups of which no pass asks a field at more than ``chunk`` points, of one ray at least."""
    size = max(1, chunk // (passes.samples + passes.fine_samples))
    for start in range(0, len(rays.origins), size):
        yield Rays(*(part[start : start + size] for part in rays))


def _ask(field: Field, rays: Rays, t: Tensor) -> Tensor:
    """Return the field at the places ``t``, ``(n, samples)``, of rays: ``(n, samples, 4)``."""
    views = rays.views[:, None].expand(*t.shape, 3)
    # One row a point: the error of a rule is a row a point then, too.
    raw = field(rays.points(t).flatten(0, 1), views.flatten(0, 1))
    return raw.to(t.dtype).unflatten(0, t.shape)  # under autocast it comes in bfloat16, too coarse for sums along rays

"""First-layer weights as small pictures, packed into one PNG a rule."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

GAP = 1
COLUMNS = 4
# Larger filters are drawn smaller, to keep the page small.
LARGEST = 56
# From negative over zero to positive: blue, white, red; told apart by every kind of colour vision.
COLD, ZERO, WARM = np.array([33, 82, 165]), np.array([247, 247, 247]), np.array([178, 40, 30])


@dataclass(frozen=True)
class Filters:
    """A grid of filters as a picture.

    Attributes:
        uri: the picture as a PNG data URI.
        width: its width in pixels, one a weight.
        height: its height in pixels.
        n: number of filters in it.
        limit: the weight that has the strongest colour; larger ones are clipped.
    """

    uri: str
    width: int
    height: int
    n: int
    limit: float


def filters(rows: Sequence[Sequence[float]] | None, shape: Sequence[int] | None) -> Filters | None:
    """Return the picture of `rows` (flat filters) of `shape` (height, width) or (channels, height, width).

    Several channels are averaged. None where there is nothing to draw: no rows, or no two-dimensional shape.
    """
    if not rows or not shape or len(shape) not in (2, 3):
        return None
    weights = np.asarray(rows, dtype=float).reshape(len(rows), -1, *shape[-2:]).mean(1)
    weights = np.nan_to_num(weights, nan=0.0, posinf=0.0, neginf=0.0)
    limit = float(np.quantile(np.abs(weights), 0.995)) or 1.0
    grid = tile([coloured(one / limit) for one in weights])
    buffer = io.BytesIO()
    Image.fromarray(grid).save(buffer, "PNG", optimize=True)
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return Filters(uri, grid.shape[1], grid.shape[0], len(rows), limit)


def coloured(scaled: Any) -> Any:
    """Return weights in [-1, 1], shape (height, width), as opaque RGBA pixels; larger ones are clipped."""
    share = np.clip(scaled, -1, 1)[..., None]
    rgb = ZERO + np.abs(share) * (np.where(share < 0, COLD, WARM) - ZERO)
    rgba = np.concatenate([rgb, np.full_like(share, 255)], axis=-1).round().astype(np.uint8)
    picture = Image.fromarray(rgba)
    picture.thumbnail((LARGEST, LARGEST), Image.Resampling.BOX)
    return np.asarray(picture)


def tile(pictures: Sequence[Any]) -> Any:
    """Return pictures of one size side by side, COLUMNS a line, with transparent gaps."""
    height, width, _ = pictures[0].shape
    columns = min(COLUMNS, len(pictures))
    lines = -(-len(pictures) // columns)
    grid = np.zeros((lines * (height + GAP) - GAP, columns * (width + GAP) - GAP, 4), np.uint8)
    for i, picture in enumerate(pictures):
        top, left = (i // columns) * (height + GAP), (i % columns) * (width + GAP)
        grid[top : top + height, left : left + width] = picture
    return grid

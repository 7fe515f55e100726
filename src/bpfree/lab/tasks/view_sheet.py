"""Held-out views for reports: truth, what a field shows, where it errs and how far it sees, side by side."""

from __future__ import annotations

import base64
import io
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bpfree.lab.data.scenes import Views
from bpfree.lab.data.scenes.cameras import Cameras
from bpfree.lab.data.scenes.scene import spread
from bpfree.lab.rendering.pictures import bytes_of
from bpfree.lab.rendering.view import Renders, render_view

_VIEWS = 2
_WIDTH = 128
"""Pixels of a picture at most: larger ones would be most of a record."""
_BLACK = 0.25
"""The error, of colours from 0 to 1, that is drawn black, as are larger ones."""


def sheet(model: Renders, views: Views) -> dict[str, Any]:
    """Return one picture for a record, of two held-out views at most, one below the other.

    Returns:
        ``png`` in base64, its ``width`` and ``height``, and the ``names`` of the views without folder and ending. A
        line has the true picture, the rendered one, the mean error of the three colours (white is none, black a quarter
        or more), and the depth, light where it is near. For a model with a fine net there follow the picture of
        NeRF-Dual and its error.
    """
    cameras = views.cameras.resized(min(views.cameras.width, _WIDTH))
    chosen = spread(views.count, _VIEWS).tolist()
    lines = []
    for number in chosen:
        truth = _resized(views.of_view(number)[1], cameras.width, cameras.height)
        shown = render_view(model, cameras, number)
        line = [truth, *_beside(shown["colours"].cpu(), truth), _near(shown, cameras)]
        if getattr(model, "fine", None) is not None:
            line += _beside(render_view(model, cameras, number, dual=True)["colours"].cpu(), truth)
        lines.append(torch.cat(line, dim=1))
    pixels = bytes_of(torch.cat(lines))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return {
        "png": base64.b64encode(buffer.getvalue()).decode("ascii"),
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "names": [PurePosixPath(views.names[number]).stem for number in chosen],
    }


def _beside(shown: Tensor, truth: Tensor) -> list[Tensor]:
    """Return a rendered picture and its error."""
    return [shown, _grey(1 - (shown - truth).abs().mean(-1) / _BLACK)]


def _near(shown: dict[str, Tensor], cameras: Cameras) -> Tensor:
    """Return the map of depth."""
    # Where nothing is seen the depth is 0, though the ray has gone to its end.
    depth = shown["depth"] + (1 - shown["opacity"]) * cameras.far
    return _grey(1 - (depth - cameras.near) / (cameras.far - cameras.near)).cpu()


def _grey(values: Tensor) -> Tensor:
    return values[..., None].expand(-1, -1, 3)


def _resized(picture: Tensor, width: int, height: int) -> Tensor:
    """Return a picture ``(height, width, 3)`` at another size; each pixel is the mean of those it covers."""
    if picture.shape[:2] == (height, width):
        return picture
    whole = Image.fromarray(bytes_of(picture))
    smaller = whole.resize((width, height), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(smaller).copy()).float() / 255

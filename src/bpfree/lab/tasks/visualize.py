"""Pictures of a convolution's filters: the images that excite them most (Launay et al. 2019, figure 3)."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

import bpfree
from bpfree.errors import nearest
from bpfree.lab.errors import SettingsError
from bpfree.rerun.snapshot import preserved

FILTERS = 12
COLUMNS = 4
_EDGE = 32  # pixels: several times the field that a filter of an early layer sees
_STEPS = 40
_START = 0.1  # the standard deviation of the noise that ascent begins with, in normalized pixels
_CONTRAST = 0.25  # the standard deviation of a picture's pixels, of a range of 1
_GAP = 1


def visualized(attachment: bpfree.Attachment, name: str, shape: Sequence[int]) -> dict[str, Any]:
    """Return the first filters of a convolution as pictures.

    Each is an image whose pixels climb the gradient of the filter's mean output, from the same faint noise for every
    model, without regularization.

    Args:
        attachment: The trained network and its rule, which is left aside.
        name: The convolution's name in the network.
        shape: The shape of one input, ``(channels, height, width)``.

    Returns:
        Under ``visualized``: ``module``, its name, ``filters``, the number of them, and ``png``, one picture of all in
        base64, at most 32 x 32 pixels each.

    Raises:
        SettingsError: There is no such convolution.
    """
    model = attachment.model
    convolution = find(model, name)
    training = model.training
    model.eval()
    try:
        with preserved(model, attachment), attachment.paused():
            images = exciting(model, convolution, shape)
    finally:
        model.train(training)
    return {"visualized": {"module": name, "filters": len(images), "png": _png(images)}}


def find(model: nn.Module, name: str) -> nn.Conv2d:
    """Return the convolution of this name.

    Raises:
        SettingsError: There is none.
    """
    found = {key: module for key, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    if name not in found:
        hint = nearest(name, found) if found else "It has none at all."
        raise SettingsError(f"--visualize {name}: the network has no such convolution. {hint}")
    return found[name]


def exciting(model: nn.Module, convolution: nn.Conv2d, shape: Sequence[int]) -> Tensor:
    """Return the images that excite the first filters of ``convolution``, ``(filters, channels, height, width)``.

    Args:
        model: Calls the convolution once; what lies behind it is not run.
        convolution: Its filters.
        shape: The shape of one input; larger images than 32 x 32 are not made.
    """
    count = min(FILTERS, convolution.out_channels)
    size = (count, shape[0], *(min(edge, _EDGE) for edge in shape[1:]))
    images = _START * torch.randn(size, generator=torch.Generator().manual_seed(0))
    images = images.to(convolution.weight.device)
    own = torch.arange(count)
    for _ in range(_STEPS):
        images.requires_grad_()
        with torch.enable_grad():
            response = _up_to(model, convolution, images)[own, own].mean((1, 2)).sum()
            (slope,) = torch.autograd.grad(response, images)
        # Steps of one length: filters differ in the size of their gradients by orders.
        length = slope.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(torch.finfo(slope.dtype).tiny)
        images = images.detach() + slope / length
    return images


class _Reached(Exception):  # noqa: N818 - not an error: what lies behind the convolution need not run
    def __init__(self, output: Tensor) -> None:
        self.output = output


def _up_to(model: nn.Module, module: nn.Module, images: Tensor) -> Tensor:
    """Return the output of ``module`` for ``images``."""

    def stop(module: nn.Module, args: Any, output: Tensor) -> None:
        raise _Reached(output)

    handle = module.register_forward_hook(stop)
    try:
        model(images)
    except _Reached as reached:
        return reached.output
    finally:
        handle.remove()
    raise SettingsError("--visualize: the network does not use this convolution.")


def _png(images: Tensor) -> str:
    """Draw images side by side, each stretched to the same contrast around grey."""
    images = images.detach().cpu()
    spread, mean = torch.std_mean(images, (1, 2, 3), keepdim=True)
    pixels = ((images - mean) / spread.clamp_min(1e-12) * _CONTRAST + 0.5).clamp(0, 1)
    if pixels.shape[1] != 3:
        pixels = pixels.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    count, _, height, width = pixels.shape
    lines = -(-count // COLUMNS)
    grid = torch.ones(3, lines * (height + _GAP) - _GAP, min(count, COLUMNS) * (width + _GAP) - _GAP)
    for number, picture in enumerate(pixels):
        top, left = (number // COLUMNS) * (height + _GAP), (number % COLUMNS) * (width + _GAP)
        grid[:, top : top + height, left : left + width] = picture
    buffer = io.BytesIO()
    rows = (grid * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(rows).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")

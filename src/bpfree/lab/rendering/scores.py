"""Compare pictures: PSNR, SSIM, and LPIPS where its package is installed.

Every score is that of one view; published tables show the mean over views.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torchmetrics.functional.image import structural_similarity_index_measure

_BORDER = 5
"""Pixels of SSIM's window, 11 x 11, beside the one in its middle."""


def psnr(picture: Tensor, truth: Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB; infinity if there is no difference.

    The mean over views is that of these values. Other libraries take the mean of the squared error first, which gives
    less where views differ.

    Args:
        picture: ``(height, width, 3)``, from 0 to 1.
        truth: The same.
    """
    error = (picture.detach().double() - truth.double()).square().mean()
    return float(-10 * error.log10())


def ssim(picture: Tensor, truth: Tensor) -> float | None:
    """Return the structural similarity (Wang et al. 2004), over the places where the whole window lies in the picture.

    So do tf.image.ssim and scikit-image, with which papers measure; torchmetrics' own mean has the border in it.

    Args:
        picture: ``(height, width, 3)``, from 0 to 1.
        truth: The same.

    Returns:
        At most 1. None if the picture has no room for the window of 11 x 11 pixels.
    """
    if min(picture.shape[:2]) <= 2 * _BORDER:
        return None
    x, y = (image.detach().double().permute(2, 0, 1)[None] for image in (picture, truth))
    _, full = structural_similarity_index_measure(x, y, data_range=1.0, return_full_image=True)
    return float(full[..., _BORDER:-_BORDER, _BORDER:-_BORDER].mean())


def noise(picture: Tensor, truth: Tensor) -> float | None:
    """Return the part of the mean squared error that changes from pixel to pixel, in units of 1e-4.

    That is the variance of the residual around its mean over the 3 x 3 pixels of which it is the middle. Launay et al.
    2020, appendix E, see in views by DFA "individual pixels taking values very distant from their neighborhood"; a
    blurred view has a large error and little of this.

    Args:
        picture: ``(height, width, 3)``, from 0 to 1.
        truth: The same.

    Returns:
        None if the picture has no room for 3 x 3 pixels.
    """
    if min(picture.shape[:2]) < 3:
        return None
    residual = (picture.detach().double() - truth.double()).permute(2, 0, 1)
    around = avg_pool2d(residual, 3, stride=1)
    return float((residual[:, 1:-1, 1:-1] - around).square().mean()) * 1e4


def lpips(picture: Tensor, truth: Tensor) -> float | None:
    """Return the perceptual distance (Zhang et al. 2018) by VGG; None where the package lpips is not installed.

    The package fetches VGG's weights when it is first used.

    Args:
        picture: ``(height, width, 3)``, from 0 to 1.
        truth: The same.
    """
    compare = _lpips()
    if compare is None:
        return None
    pair = (image.float().cpu().permute(2, 0, 1)[None] for image in (picture, truth))
    with torch.no_grad():
        return float(compare(*pair, normalize=True))


@functools.cache
def _lpips() -> Callable[..., Tensor] | None:
    try:
        from lpips import LPIPS
    except ModuleNotFoundError:
        return None
    network: Callable[..., Tensor] = LPIPS(net="vgg", verbose=False).eval()
    return network

"""PSNR and SSIM of pictures, against their definitions."""

import math
import sys
import types

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from bpfree.lab.rendering import scores


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(40, 50, 3, generator=generator)
    return (truth + 0.1 * torch.randn(40, 50, 3, generator=generator)).clamp(0, 1), truth


def test_psnr(pair):
    picture, truth = (image.double().numpy() for image in pair)
    assert scores.psnr(*pair) == pytest.approx(10 * math.log10(1 / np.mean((picture - truth) ** 2)), abs=1e-9)
    assert scores.psnr(torch.zeros(4, 4, 3), torch.full((4, 4, 3), 0.1)) == pytest.approx(20, abs=1e-5)
    assert scores.psnr(pair[0], pair[0]) == math.inf


def test_ssim_is_that_of_the_inner_window(pair):
    """By scipy's Gaussian filter: weights of deviation 1.5 within 11 x 11 pixels, none of them outside the picture."""
    x, y = (image.double().numpy() for image in pair)

    def mean(image):
        return gaussian_filter(image, (1.5, 1.5, 0), truncate=3.5)[5:-5, 5:-5]

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    expected = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    assert scores.ssim(*pair) == pytest.approx(expected.mean(), abs=1e-6)
    assert scores.ssim(pair[0], pair[0]) == pytest.approx(1)


def test_ssim_needs_room_for_its_window():
    assert scores.ssim(torch.zeros(10, 50, 3), torch.zeros(10, 50, 3)) is None
    assert scores.ssim(torch.zeros(11, 11, 3), torch.zeros(11, 11, 3)) is not None


def test_noise_is_what_changes_from_pixel_to_pixel():
    """White noise of variance v keeps 8 ninths of it around its mean over 9 pixels; a slope keeps nothing."""
    generator = torch.Generator().manual_seed(0)
    flat = torch.full((200, 200, 3), 0.5)
    rough = flat + 0.05 * torch.randn(flat.shape, generator=generator)
    assert scores.noise(rough, flat) == pytest.approx(0.05**2 * 8 / 9 * 1e4, rel=0.02)
    slope = flat + torch.linspace(-0.4, 0.4, 200)[:, None]
    assert scores.noise(slope, flat) == pytest.approx(0, abs=1e-8)
    assert scores.psnr(slope, flat) < scores.psnr(rough, flat)
    assert scores.noise(flat[:2], flat[:2]) is None


def test_lpips_only_where_it_is_installed(pair, monkeypatch):
    scores._lpips.cache_clear()
    monkeypatch.setitem(sys.modules, "lpips", None)
    assert scores.lpips(*pair) is None
    scores._lpips.cache_clear()

    class Distance(torch.nn.Module):
        """Sees what the package would see: batches of one, channels first, from 0 to 1."""

        def __init__(self, net, verbose):
            super().__init__()
            assert net == "vgg"

        def forward(self, x, y, normalize):
            assert x.shape == y.shape == (1, 3, 40, 50)
            assert normalize
            return (x - y).square().mean().reshape(1, 1, 1, 1)

    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=Distance))
    assert scores.lpips(*pair) == pytest.approx(float((pair[0] - pair[1]).square().mean()))
    scores._lpips.cache_clear()

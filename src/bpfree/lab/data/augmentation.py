"""Random crops and flips of whole batches of images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from bpfree.lab.errors import SettingsError

_TRIES = 10


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """The random changes of training images, drawn anew each time; by default none. Images keep their size.

    Args:
        crop_padding: Random crop (He et al. 2016 on CIFAR: 4): the image is put in a black frame of this many pixels,
            and a part of the image's own size is cut out at a random place.
        flip: Mirror left and right, with probability 1/2.
        resized_crop_scale: Random resized crop (Szegedy et al. 2015; on ImageNet 0.08 to 1): a random part, whose area
            is between these two fractions of the image's, is scaled to the image's size.
        resized_crop_ratio: The smallest and the largest width of such a part, relative to its height.
    """

    crop_padding: int = 0
    flip: bool = False
    resized_crop_scale: tuple[float, float] | None = None
    resized_crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        if self.crop_padding < 0:
            raise SettingsError(f"--augmentation.crop_padding {self.crop_padding} must not be negative.")
        smallest, largest = self.resized_crop_scale or (1.0, 1.0)
        if not 0 < smallest <= largest <= 1:
            raise SettingsError(f"--augmentation.resized_crop_scale {smallest} {largest}: two parts of 1, in order.")
        narrow, wide = self.resized_crop_ratio
        if not 0 < narrow <= wide:
            raise SettingsError(f"--augmentation.resized_crop_ratio {narrow} {wide}: two numbers above 0, in order.")
        if self.crop_padding and self.resized_crop_scale:
            raise SettingsError("--augmentation: give crop_padding or resized_crop_scale, not both.")

    def __bool__(self) -> bool:
        """Return whether images are changed at all."""
        return bool(self.crop_padding or self.flip or self.resized_crop_scale)


def augmented(x: Tensor, augmentation: Augmentation, black: Tensor, generator: Generator) -> Tensor:
    """Return a batch of images with random crops and flips, drawn for each image by itself.

    Args:
        x: Normalized images, ``(N, channels, height, width)``.
        augmentation: Their random changes.
        black: The value of a black pixel in each channel, ``(channels,)``.
        generator: Draws; of the CPU.

    Returns:
        Images of the same shape; ``x`` is not changed.
    """
    if augmentation.resized_crop_scale is not None:
        x = _resized_crops(x, augmentation.resized_crop_scale, augmentation.resized_crop_ratio, generator)
    if augmentation.crop_padding or augmentation.flip:
        x = _moved(x, augmentation.crop_padding, augmentation.flip, black, generator)
    return x


def _moved(x: Tensor, padding: int, flip: bool, black: Tensor, generator: Generator) -> Tensor:
    """Return random crops from a frame and flips, both at once: every pixel is copied from another place, or black."""
    n, channels, height, width = x.shape
    offsets = torch.randint(2 * padding + 1, (2, n, 1), generator=generator) - padding
    rows, columns = torch.arange(height) + offsets[0], torch.arange(width) + offsets[1]
    if flip:
        columns = torch.where(torch.rand(n, 1, generator=generator) < 0.5, columns.flip(1), columns)
    inside = ((rows >= 0) & (rows < height)).unsqueeze(2) & ((columns >= 0) & (columns < width)).unsqueeze(1)
    places = rows.clamp(0, height - 1).unsqueeze(2) * width + columns.clamp(0, width - 1).unsqueeze(1)
    moved = x.flatten(2).gather(2, places.reshape(n, 1, -1).expand(-1, channels, -1)).view(x.shape)
    return torch.where(inside.unsqueeze(1), moved, black.reshape(1, -1, 1, 1))


def _resized_crops(x: Tensor, scale: tuple[float, float], ratio: tuple[float, float], generator: Generator) -> Tensor:
    """Return random parts, scaled to the image's size by bilinear interpolation."""
    size = _part_sizes(x.shape, scale, ratio, generator)
    # Places in the image run from -1 to 1, so a part of relative size s may have its middle within 1 - s of 0.
    middle = (2 * torch.rand(size.shape, generator=generator) - 1) * (1 - size)
    # Rows of [[width, 0, x], [0, height, y]]: where in the image each place of the part lies.
    theta = torch.cat([torch.diag_embed(size), middle.unsqueeze(2)], dim=2)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _part_sizes(
    shape: torch.Size, scale: tuple[float, float], ratio: tuple[float, float], generator: Generator
) -> Tensor:
    """Return width and height of a random part of each image, relative to the image: ``(N, 2)``.

    Area and the logarithm of width / height are uniform, among the parts that fit into the image.
    """
    n, _, height, width = shape
    # Several at once and the first that fits, in place of trying again.
    area = torch.empty(_TRIES, n).uniform_(*scale, generator=generator) * (height * width)
    aspect = torch.empty(_TRIES, n).uniform_(*map(math.log, ratio), generator=generator).exp()
    sizes = torch.stack([(area * aspect).sqrt() / width, (area / aspect).sqrt() / height], dim=2)
    first = (sizes <= 1).all(2).int().argmax(0)
    # Where none fits, the first is cut off at the image's edges.
    return sizes[first, torch.arange(n)].clamp(max=1)

"""The preparation of images after reading: their size, and the normalization of their pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from bpfree.lab.data.lazy import Lazy
from bpfree.lab.data.splits import Images, Normalization, Splits
from bpfree.lab.errors import SettingsError


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """The options for reading images.

    Args:
        size: Height and width in pixels; by default those of the files, and 224 for a folder of pictures.
        mean: The numbers to subtract from pixels between 0 and 1, one per channel; by default the data set's mean.
        std: The numbers to divide by then, one per channel; by default the data set's standard deviation.
        training: Train on so many of the training images, always the same ones, drawn at random; by default on all.
    """

    size: int | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    training: int | None = None

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise SettingsError(f"--images.size {self.size} must be at least 1.")
        if self.std is not None and not all(value > 0 for value in self.std):
            raise SettingsError(f"--images.std {self.std}: standard deviations are above 0.")
        if self.training is not None and self.training < 1:
            raise SettingsError(f"--images.training {self.training} must be at least 1.")

    def normalization(self, default: Normalization) -> Normalization:
        """Return the normalization of pixels whose data set suggests ``default``.

        Raises:
            SettingsError: There are more or fewer numbers than channels.
        """
        return Normalization(_of_channels("mean", self.mean, default.mean), _of_channels("std", self.std, default.std))


def _of_channels(name: str, given: Sequence[float] | None, default: tuple[float, ...]) -> tuple[float, ...]:
    if given is None:
        return default
    if len(given) != len(default):
        raise SettingsError(f"--images.{name} {list(given)}: the images have {len(default)} channel(s).")
    return tuple(given)


def prepared(splits: Splits, settings: ImageSettings) -> Splits:
    """Return the data set, with another normalization or size if one is asked for.

    Enlarged images are made batch by batch: 50,000 of 3 x 224 x 224 would take 30 GB.

    Raises:
        SettingsError: ``mean`` or ``std`` do not fit the images' channels.
    """
    wanted = settings.normalization(splits.normalization)
    if wanted != splits.normalization:
        splits = _renormalized(splits, wanted)
    if settings.size is not None and splits.shape[1:] != (settings.size, settings.size):
        train, evaluation = (_resized(part, settings.size) for part in (splits.train, splits.evaluation))
        splits = replace(splits, train=train, evaluation=evaluation)
    return splits


def _renormalized(splits: Splits, wanted: Normalization) -> Splits:
    """Return the same pixels with another normalization."""
    (mean, std), (other_mean, other_std) = (
        [torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1) for values in entry]
        for entry in (splits.normalization, wanted)
    )
    factor, shift = (std / other_std).float(), ((mean - other_mean) / other_std).float()

    def change(part: Images) -> Images:
        assert isinstance(part.x, Tensor)  # nothing is made lazily before it has its size
        # In place: a second copy of CIFAR would be 614 MB, and nobody else has what was just read.
        return Images(part.x.mul_(factor).add_(shift), part.y)

    return replace(splits, train=change(splits.train), evaluation=change(splits.evaluation), normalization=wanted)


def _resized(images: Images, size: int) -> Images:
    """Return square images of another size, made when they are asked for."""

    def make(rows: Tensor) -> Tensor:
        # Antialiased, which enlarging does not notice, and shrinking needs.
        return F.interpolate(images.x[rows], (size, size), mode="bilinear", antialias=True)

    return Images(Lazy(make, torch.arange(len(images)), (images.x.shape[1], size, size)), images.y)

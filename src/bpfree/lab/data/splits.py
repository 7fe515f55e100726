"""What a data set is here: two sets of images, and what is known about them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from bpfree.lab.errors import SettingsError


@dataclass(frozen=True)
class Images:
    """Labelled images in memory.

    Attributes:
        x: float32, shape ``(n, channels, height, width)``, normalized.
        y: int64, shape ``(n,)``, the classes 0 to c - 1.
    """

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def take(self, index: Tensor) -> Images:
        """The images at ``index``, int64 of shape ``(k,)``."""
        return Images(self.x[index], self.y[index])


@dataclass(frozen=True)
class Splits:
    """A data set, ready for training.

    Attributes:
        name: The data set's name.
        train: What is trained on.
        evaluation: What accuracy and alignment are measured on; never trained on.
        measured_on: Which images those are: the test set, or held-out training images.
        classes: The number of classes c.
        normalization: ``(mean, std)`` of pixels in 0..1: x = (pixel / 255 - mean) / std.
        checksums: File name -> SHA-256 of what was read.
    """

    name: str
    train: Images
    evaluation: Images
    classes: int
    normalization: tuple[float, float]
    measured_on: Literal["test", "validation"] = "test"
    checksums: dict[str, str] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image, ``(channels, height, width)``."""
        return tuple(self.train.x.shape[1:])

    def describe(self) -> dict[str, Any]:
        """The data set as a report shows it, without the images."""
        return {
            "name": self.name,
            "n_train": len(self.train),
            "n_eval": len(self.evaluation),
            "measured_on": self.measured_on,
            "classes": self.classes,
            "shape": list(self.shape),
            "normalization": {"mean": self.normalization[0], "std": self.normalization[1]},
            "checksums": self.checksums,
        }


def normalized(pixels: Tensor, normalization: tuple[float, float]) -> Tensor:
    """Bytes of shape ``(n, height, width)`` to normalized float32 of shape ``(n, 1, height, width)``."""
    mean, std = normalization
    return pixels.unsqueeze(1).float().div_(255).sub_(mean).div_(std)


def hold_out(splits: Splits, validation: int, seed: int) -> Splits:
    """Measure on ``validation`` training images, drawn by ``seed``, and train on the others.

    Raises:
        SettingsError: ``validation`` is negative or leaves nothing to train on.
    """
    n = len(splits.train)
    if not 0 < validation < n:
        raise SettingsError(f"--validation {validation} must lie between 0 and {n - 1}: {splits.name} has {n} images.")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    # Back in the file's order, so that only the choice depends on the seed.
    held, kept = order[:validation].sort().values, order[validation:].sort().values
    return replace(
        splits,
        train=splits.train.take(kept),
        evaluation=splits.train.take(held),
        measured_on="validation",
    )

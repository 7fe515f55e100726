"""A scene, ready for training: views to learn from, and views that are held out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from bpfree.lab.data.scenes.cameras import Cameras
from bpfree.lab.data.scenes.settings import MeasuredOn
from bpfree.lab.rendering.rays import NUMBERS, Rays


@dataclass(frozen=True)
class Views:
    """Pictures and their cameras. Rays are made when they are asked for: all of them would take 15 times the memory.

    Attributes:
        pixels: uint8 ``(n, height, width, 3)``, or 4 with transparency.
        cameras: The camera of each picture.
        background: The grey behind transparent pixels.
        names: The name of each view.
    """

    pixels: Tensor
    cameras: Cameras
    background: float = 0.0
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of pixels, each of which is a sample."""
        return len(self.pixels) * self.cameras.pixels

    @property
    def count(self) -> int:
        """The number of views."""
        return len(self.pixels)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return packed rays ``(k, 11)`` and their colours ``(k, 3)``, of the pixels at ``index``, int64 ``(k,)``."""
        return self.cameras.rays(index).pack(), self.colours(index)

    def colours(self, index: Tensor) -> Tensor:
        """Return the colours of pixels, float32 ``(k, 3)`` from 0 to 1, the background behind what is transparent."""
        found = self.pixels.flatten(0, 2).index_select(0, index).float() / 255
        if found.shape[1] == 3:
            return found
        opacity = found[:, 3:]
        return found[:, :3] * opacity + self.background * (1 - opacity)

    def of_view(self, number: int) -> tuple[Rays, Tensor]:
        """Return all rays of a view, row by row, and its picture ``(height, width, 3)``."""
        size = self.cameras.pixels
        index = torch.arange(number * size, (number + 1) * size)
        return self.cameras.rays(index), self.colours(index).unflatten(0, (self.cameras.height, self.cameras.width))

    def choose(self, index: Tensor) -> Views:
        """Return the views at ``index``, int64 ``(k,)``."""
        names = tuple(self.names[number] for number in index.tolist()) if self.names else ()
        return replace(self, pixels=self.pixels[index], cameras=self.cameras.take(index), names=names)


@dataclass(frozen=True)
class Scene:
    """A scene, ready for training.

    Attributes:
        name: The name of its folder.
        train: The views to learn from.
        evaluation: Held-out views, for PSNR; never trained on.
        measured_on: Which those are.
        checksums: Name -> SHA-256 of what was read.
    """

    name: str
    train: Views
    evaluation: Views
    measured_on: MeasuredOn
    checksums: dict[str, str] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one packed ray."""
        return (NUMBERS,)

    @property
    def classes(self) -> int:
        """The number of colours of a ray."""
        return 3

    def first(self, n: int) -> Scene:
        """Return the same with the first ``n`` views to train on."""
        return replace(self, train=self.train.choose(torch.arange(min(n, self.train.count))))

    def describe(self) -> dict[str, Any]:
        """Return the scene as a report shows it, without the pictures; ``n_train`` and ``n_eval`` count views."""
        return {
            "name": self.name,
            "n_train": self.train.count,
            "n_eval": self.evaluation.count,
            "measured_on": self.measured_on,
            "width": self.train.cameras.width,
            "height": self.train.cameras.height,
            "near": self.train.cameras.near,
            "far": self.train.cameras.far,
            "ndc": self.train.cameras.ndc is not None,
            "background": self.train.background,
            "checksums": self.checksums | {"views": self._checksum_of_names()},
        }

    def _checksum_of_names(self) -> str:
        """Return the SHA-256 of which views are learned from, and which are measured on."""
        return hashlib.sha256(repr((self.train.names, self.evaluation.names)).encode("utf-8", "replace")).hexdigest()


def spread(count: int, most: int | None) -> Tensor:
    """Return the numbers of at most ``most`` of ``count`` things, spread evenly, the first one included."""
    n = count if most is None else min(most, count)
    return torch.arange(n) * count // n

"""Residual networks for images of 32 x 32 pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch.nn.functional as F
from torch import Tensor, nn

from bpfree.lab.errors import SettingsError
from bpfree.lab.models.image_network import ImageNetwork, Planes, stage
from bpfree.lab.models.initialization import Initialization

Shortcut: TypeAlias = Literal["identity", "projection"]


class ResNet(ImageNetwork):
    """A residual network of He et al. 2016, section 4.2: ``(N, channels, height, width)`` to ``(N, classes)``.

    A convolution, three stages of blocks with 16, 32 and 64 channels, of which the second and the third begin at stride
    2, the average over each map, and a linear layer: 6 ``blocks`` + 2 layers with weights, ResNet-20 by default. Every
    convolution is 3 x 3, without bias, and normalized over the batch.

    Feedback enters behind the first convolution's non-linearity and behind that of every block's sum.

    Args:
        shape: The shape of one image, ``(channels, height, width)``.
        classes: The number of outputs.
        blocks: The number of blocks in each stage.
        widths: The channels of each stage.
        shortcut: What goes past a block that changes the size: every second pixel, with zeros for the channels that are
            new (``"identity"``, the paper's option A, its choice for this size), or a convolution of 1 x 1, normalized
            (``"projection"``, option B).
        initialization: Normal weights of variance 2 / inputs and no bias (``"he"``, He et al. 2015, as published), or
            PyTorch's own (``"torch"``).

    Raises:
        SettingsError: The shape is not that of an image, or there is no stage, or a stage without a block.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        blocks: int = 3,
        widths: Sequence[int] = (16, 32, 64),
        shortcut: Shortcut = "identity",
        initialization: Initialization = "he",
    ) -> None:
        if blocks < 1 or not widths:
            raise SettingsError(f"ResNet needs blocks, and widths: blocks={blocks}, widths={list(widths)}.")
        planes = Planes(shape, "ResNet")
        layers: dict[str, nn.Module] = {
            "first": stage(
                conv=planes.convolution(widths[0], 3, padding=1, bias=False),
                norm=nn.BatchNorm2d(widths[0]),
                act=nn.ReLU(),
            )
        }
        for number, width in enumerate(widths, start=1):
            for block in _from_one(blocks):
                stride = 2 if block == 1 < number else 1
                layers[f"block{number}_{block}"] = Block(planes, width, stride, shortcut)
        layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "head": nn.Linear(widths[-1], classes)}
        super().__init__(layers, initialization)

    @staticmethod
    def suggested_taps(blocks: int = 3, widths: Sequence[int] = (16, 32, 64), **_: object) -> tuple[str, ...]:
        """Return the names of the taps that a model with these arguments has."""
        return (
            "first",
            *(f"block{number}_{block}" for number in _from_one(len(widths)) for block in _from_one(blocks)),
        )


def _from_one(last: int) -> range:
    return range(1, last + 1)


class Block(nn.Module):
    """Two convolutions, and the input added to what they make of it; then ReLU.

    Args:
        planes: The shape of its input, which becomes that of its output.
        channels: Of its output.
        stride: Of its first convolution.
        shortcut: As :class:`ResNet` has it.
    """

    def __init__(self, planes: Planes, channels: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        before = planes.channels
        self.conv1 = planes.convolution(channels, 3, stride=stride, padding=1, bias=False)
        self.norm1, self.act1 = nn.BatchNorm2d(channels), nn.ReLU()
        self.conv2 = planes.convolution(channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module
        if stride == 1 and before == channels:
            self.shortcut = nn.Identity()
        elif shortcut == "identity":
            self.shortcut = _Subsampled(stride, channels - before)
        else:
            self.shortcut = stage(
                conv=nn.Conv2d(before, channels, 1, stride=stride, bias=False), norm=nn.BatchNorm2d(channels)
            )
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return maps ``(N, channels, height / stride, width / stride)``."""
        change = self.norm2(self.conv2(self.act1(self.norm1(self.conv1(x)))))
        output: Tensor = self.act(change + self.shortcut(x))
        return output


class _Subsampled(nn.Module):
    """Takes every ``stride``-th pixel, and adds channels of zeros."""

    def __init__(self, stride: int, more: int) -> None:
        super().__init__()
        self._stride, self._more = stride, more

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self._stride, :: self._stride], (0, 0, 0, 0, 0, self._more))

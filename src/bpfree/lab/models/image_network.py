"""The base of the convolutional networks: stages of layers, and the memory format of images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from bpfree.lab.errors import SettingsError
from bpfree.lab.models.initialization import Initialization, initialize


class ImageNetwork(nn.Sequential):
    """Layers by name that turn images ``(N, channels, height, width)`` into logits ``(N, classes)``."""

    def __init__(self, layers: Mapping[str, nn.Module], initialization: Initialization = "torch") -> None:
        super().__init__(OrderedDict(layers))
        initialize(self, initialization)

    def forward(self, input: Tensor) -> Tensor:
        """Return logits ``(N, classes)``."""
        # Poolings and tangents run up to a fifth faster on a CPU with the channels last in memory.
        return super().forward(input.contiguous(memory_format=torch.channels_last))


def stage(**layers: nn.Module | None) -> nn.Sequential:
    """Return a stage of layers by name, in order; None leaves one out. The last layer is the tap."""
    return nn.Sequential(OrderedDict((name, layer) for name, layer in layers.items() if layer is not None))


class Planes:
    """Follows the shape of what convolutions and poolings make of an image.

    Args:
        shape: The shape of one image, ``(channels, height, width)``.
        model: The model's name, for messages.

    Attributes:
        channels: Behind what was added so far.
        size: Height and width.

    Raises:
        SettingsError: The shape is not that of an image.
    """

    def __init__(self, shape: Sequence[int], model: str) -> None:
        if len(shape) != 3:
            raise SettingsError(f"{model} takes images of shape (channels, height, width), not {tuple(shape)}.")
        self.channels, *self.size = shape
        self._model, self._shape = model, tuple(shape)

    def convolution(self, channels: int, kernel: int, **options: Any) -> nn.Conv2d:
        """Make a convolution to this many channels.

        Raises:
            SettingsError: The image is too small for it.
        """
        layer = nn.Conv2d(self.channels, channels, kernel, **options)
        self.channels = channels
        self._pass(kernel, layer.stride[0], cast(int, layer.padding[0]))  # a word only where one is asked for
        return layer

    def pooling(self, kind: type[nn.MaxPool2d | nn.AvgPool2d], kernel: int, stride: int) -> nn.Module:
        """Make a pooling.

        Raises:
            SettingsError: The image is too small for it.
        """
        self._pass(kernel, stride, 0)
        return kind(kernel, stride=stride)

    def _pass(self, kernel: int, stride: int, padding: int) -> None:
        self.size = [(edge + 2 * padding - kernel) // stride + 1 for edge in self.size]
        if min(self.size) < 1:
            _, height, width = self._shape
            raise SettingsError(f"images of {height} x {width} are too small for {self._model}.")

    @property
    def features(self) -> int:
        """The numbers of one flattened image."""
        return self.channels * self.size[0] * self.size[1]

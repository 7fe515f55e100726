"""A small convolutional network."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bpfree.lab.errors import SettingsError
from bpfree.lab.models.activations import Activation, activation_module


class CNN(nn.Sequential):
    """Three convolutions of 5 x 5 with 3 x 3 max pooling at stride 2, and one hidden linear layer.

    ``(N, channels, height, width)`` to ``(N, classes)``; for images of 28 x 28 or 32 x 32 pixels and the like. On
    CIFAR-10 it is the network of Launay et al. 2019, table 4, where feedback enters behind each pooling and behind the
    linear layer: ``taps=["pool*", "act"]``.

    Args:
        shape: The shape of one image, ``(channels, height, width)``, at least 15 x 15 pixels.
        classes: The number of outputs.
        channels: The number of channels behind each convolution.
        hidden: The width of the linear layer.
        activation: The non-linearity behind each convolution and the linear layer.
        negative_slope: The slope of ``leaky_relu`` below zero; the other non-linearities do not use it.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        channels: Sequence[int] = (32, 64, 64),
        hidden: int = 128,
        activation: Activation = "tanh",
        negative_slope: float = 0.01,
    ) -> None:
        if len(shape) != 3:
            raise SettingsError(f"CNN takes images of shape (channels, height, width), not {tuple(shape)}.")
        planes, *size = shape
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for number, out in enumerate(channels, start=1):
            if min(size) < 3:
                raise SettingsError(f"images of {shape[1]} x {shape[2]} are too small for {len(channels)} poolings.")
            layers[f"conv{number}"] = nn.Conv2d(planes, out, kernel_size=5, padding=2)
            layers[f"act{number}"] = activation_module(activation, negative_slope)
            layers[f"pool{number}"] = nn.MaxPool2d(3, stride=2)
            planes, size = out, [(edge - 3) // 2 + 1 for edge in size]
        layers["flatten"] = nn.Flatten()
        layers["fc"] = nn.Linear(planes * size[0] * size[1], hidden)
        layers["act"] = activation_module(activation, negative_slope)
        layers["head"] = nn.Linear(hidden, classes)
        super().__init__(layers)

    def forward(self, input: Tensor) -> Tensor:
        """Logits ``(N, classes)``."""
        # Poolings and tangents run up to a fifth faster on a CPU with the channels last in memory.
        return super().forward(input.contiguous(memory_format=torch.channels_last))

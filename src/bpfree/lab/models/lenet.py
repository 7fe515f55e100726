"""LeNet-4."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from bpfree.lab.models.activations import Activation, activation_module
from bpfree.lab.models.image_network import ImageNetwork, Planes, stage

_EDGE = 32  # LeCun et al. put the digits of 28 x 28 into the middle of 32 x 32


class LeNet4(ImageNetwork):
    """Two convolutions of 5 x 5, each with 2 x 2 average pooling, and one hidden linear layer.

    ``(N, channels, height, width)`` to ``(N, classes)``. LeCun et al. 1998 describe LeNet-4 by its feature maps: 4,
    then 16, then 120 units. Here every map of the second convolution sees all of the first's (there, some of them), and
    poolings have no weights. Feedback enters behind each pooling, and behind the hidden layer.

    The shallow convolutional network of GrAPE, table 1, "follows the architectural details of LeNet-4".

    Args:
        shape: The shape of one image, ``(channels, height, width)``. Smaller ones than 32 x 32 get a frame of zeros.
        classes: The number of outputs.
        channels: The number of feature maps behind each of the two convolutions.
        hidden: The width of the linear layer.
        activation: The non-linearity behind each convolution and the linear layer.
        negative_slope: The slope of ``leaky_relu`` below zero; the other non-linearities do not use it.
    """

    suggested_taps: ClassVar[tuple[str, ...]] = ("conv?", "fc")

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        channels: Sequence[int] = (4, 16),
        hidden: int = 120,
        activation: Activation = "tanh",
        negative_slope: float = 0.01,
    ) -> None:
        planes = Planes(shape, "LeNet4")
        frame = max(0, (_EDGE - min(planes.size) + 1) // 2)
        layers: dict[str, nn.Module] = {}
        for number, out in enumerate(channels, start=1):
            layers[f"conv{number}"] = stage(
                conv=planes.convolution(out, 5, padding=frame if number == 1 else 0),
                act=activation_module(activation, negative_slope),
                pool=planes.pooling(nn.AvgPool2d, 2, stride=2),
            )
        layers["flatten"] = nn.Flatten()
        layers["fc"] = stage(
            linear=nn.Linear(planes.features, hidden), act=activation_module(activation, negative_slope)
        )
        layers["head"] = nn.Linear(hidden, classes)
        super().__init__(layers)

"""A small convolutional network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from bpfree.lab.models.activations import Activation, activation_module
from bpfree.lab.models.image_network import ImageNetwork, Planes
from bpfree.lab.models.initialization import BatchNorm, begin_norms


class CNN(ImageNetwork):
    """Three convolutions of 5 x 5 with 3 x 3 max pooling at stride 2, and one hidden linear layer.

    ``(N, channels, height, width)`` to ``(N, classes)``; for images of 28 x 28 or 32 x 32 pixels and the like. On
    CIFAR-10 it is the network of Launay et al. 2019, table 4, where feedback enters behind each pooling and behind the
    linear layer's non-linearity, or its batch normalization. Layers stand in the order convolution or linear layer,
    dropout, non-linearity, batch normalization, pooling; with dropout in convolutions whole channels are set to zero.

    Args:
        shape: The shape of one image, ``(channels, height, width)``, at least 15 x 15 pixels.
        classes: The number of outputs.
        channels: The number of channels behind each convolution.
        hidden: The width of the linear layer.
        activation: The non-linearity behind each convolution and the linear layer.
        negative_slope: The slope of ``leaky_relu`` below zero; the other non-linearities do not use it.
        batch_norm: Normalize over the batch, behind each non-linearity; ``"uniform"`` with factors that begin uniform
            on (0, 1), as in PyTorch before 1.2, and not at 1.
        input_dropout: The fraction of the image's channels that dropout sets to zero.
        conv_dropout: The fraction of channels that dropout sets to zero behind each convolution.
        dropout: The fraction of the linear layer's outputs that dropout sets to zero.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        channels: Sequence[int] = (32, 64, 64),
        hidden: int = 128,
        activation: Activation = "tanh",
        negative_slope: float = 0.01,
        batch_norm: BatchNorm = False,
        input_dropout: float = 0.0,
        conv_dropout: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        planes = Planes(shape, "CNN")
        layers: dict[str, nn.Module | None] = {"input_drop": nn.Dropout2d(input_dropout) if input_dropout else None}
        for number, out in enumerate(channels, start=1):
            layers[f"conv{number}"] = planes.convolution(out, 5, padding=2)
            layers[f"drop{number}"] = nn.Dropout2d(conv_dropout) if conv_dropout else None
            layers[f"act{number}"] = activation_module(activation, negative_slope)
            layers[f"norm{number}"] = nn.BatchNorm2d(out) if batch_norm else None
            layers[f"pool{number}"] = planes.pooling(nn.MaxPool2d, 3, stride=2)
        layers["flatten"] = nn.Flatten()
        layers["fc"] = nn.Linear(planes.features, hidden)
        layers["drop"] = nn.Dropout(dropout) if dropout else None
        layers["act"] = activation_module(activation, negative_slope)
        layers["norm"] = nn.BatchNorm1d(hidden) if batch_norm else None
        layers["head"] = nn.Linear(hidden, classes)
        super().__init__({name: layer for name, layer in layers.items() if layer is not None})
        begin_norms(self, batch_norm)
        self.aligned_layers = ("norm" if batch_norm else "act",)  # be there a tap or not

    @staticmethod
    def suggested_taps(batch_norm: BatchNorm = False, **_: object) -> tuple[str, ...]:
        """Return the taps that Launay et al. 2019 describe; their code leaves out the last one."""
        return ("pool*", "norm" if batch_norm else "act")

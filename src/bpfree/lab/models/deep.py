"""AlexNet and VGG-16, for images of 224 x 224 pixels as published, and in the usual forms for 32 x 32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, TypeAlias

from torch import nn

from bpfree.lab.models.activations import Activation, activation_module
from bpfree.lab.models.image_network import ImageNetwork, Planes, stage
from bpfree.lab.models.initialization import Initialization

Form: TypeAlias = Literal[32, 224]

# Channels, kernel, stride, padding, and the kernel of the max pooling behind it, at stride 2.
_Convolution: TypeAlias = tuple[int, int, int, int, int | None]
_ALEXNET: dict[int, tuple[_Convolution, ...]] = {
    32: ((64, 3, 2, 1, 2), (192, 3, 1, 1, 2), (384, 3, 1, 1, None), (256, 3, 1, 1, None), (256, 3, 1, 1, 2)),
    224: ((64, 11, 4, 2, 3), (192, 5, 1, 2, 3), (384, 3, 1, 1, None), (256, 3, 1, 1, None), (256, 3, 1, 1, 3)),
}
_VGG16 = (64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)


class AlexNet(ImageNetwork):
    """Five convolutions and two hidden linear layers: ``(N, channels, height, width)`` to ``(N, classes)``.

    For 224 x 224 it is the network of Krizhevsky 2014 ("One weird trick for parallelizing convolutional neural
    networks"), the one column version of Krizhevsky et al. 2012, without local response normalization. For 32 x 32 the
    first two kernels are 3 x 3, the first stride is 2, and poolings are 2 x 2.

    Feedback enters behind every hidden layer: behind its pooling if it has one, and otherwise its non-linearity.

    Args:
        shape: The shape of one image, ``(channels, height, width)``; larger ones than the form's make the first linear
            layer larger.
        classes: The number of outputs.
        form: For which size of images.
        hidden: The width of each hidden linear layer.
        activation: The non-linearity behind each hidden layer.
        batch_norm: Normalize over the batch between each convolution and its non-linearity.
        dropout: The fraction of activations that dropout sets to zero behind each hidden linear layer; 0.5 as
            published.
        initialization: PyTorch's own (``"torch"``), or normal weights of variance 2 / inputs and no bias (``"he"``, He
            et al. 2015).
    """

    suggested_taps: ClassVar[tuple[str, ...]] = ("conv?", "fc?")

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        form: Form = 32,
        hidden: Sequence[int] = (4096, 4096),
        activation: Activation = "relu",
        batch_norm: bool = False,
        dropout: float = 0.0,
        initialization: Initialization = "torch",
    ) -> None:
        planes, layers = Planes(shape, f"AlexNet in its form for {form} x {form}"), {}
        for number, (channels, kernel, stride, padding, pool) in enumerate(_ALEXNET[form], start=1):
            layers[f"conv{number}"] = stage(
                conv=planes.convolution(channels, kernel, stride=stride, padding=padding),
                norm=nn.BatchNorm2d(channels) if batch_norm else None,
                act=activation_module(activation),
                pool=planes.pooling(nn.MaxPool2d, pool, stride=2) if pool else None,
            )
        super().__init__(layers | _classifier(planes.features, hidden, classes, activation, dropout), initialization)


class VGG16(ImageNetwork):
    """Thirteen convolutions of 3 x 3 and two hidden linear layers.

    ``(N, channels, height, width)`` to ``(N, classes)``; Simonyan and Zisserman 2014, configuration D. For 32 x 32 the
    convolutions are the same, which leave one pixel of 512 channels, and the linear layers are 512 wide in place of
    4096. Launay et al. 2019, table 3, enlarge CIFAR-100 to the form for 224 x 224.

    Feedback enters behind every hidden layer: behind its pooling if it has one, and otherwise its non-linearity.

    Args:
        shape: The shape of one image, ``(channels, height, width)``, at least 32 x 32; larger ones than the form's make
            the first linear layer larger.
        classes: The number of outputs.
        form: For which size of images.
        hidden: The width of each hidden linear layer; by default the form's.
        activation: The non-linearity behind each hidden layer.
        batch_norm: Normalize over the batch between each convolution and its non-linearity.
        dropout: The fraction of activations that dropout sets to zero behind each hidden linear layer; 0.5 as
            published.
        initialization: PyTorch's own (``"torch"``), or normal weights of variance 2 / inputs and no bias (``"he"``, He
            et al. 2015), under which what passes ReLU keeps its size through 13 convolutions.
    """

    suggested_taps: ClassVar[tuple[str, ...]] = ("conv?_?", "fc?")

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        form: Form = 32,
        hidden: Sequence[int] | None = None,
        activation: Activation = "relu",
        batch_norm: bool = False,
        dropout: float = 0.0,
        initialization: Initialization = "torch",
    ) -> None:
        planes, layers = Planes(shape, "VGG16"), {}
        for block, widths in enumerate(_VGG16, start=1):
            for number, channels in enumerate(widths, start=1):
                layers[f"conv{block}_{number}"] = stage(
                    conv=planes.convolution(channels, 3, padding=1),
                    norm=nn.BatchNorm2d(channels) if batch_norm else None,
                    act=activation_module(activation),
                    pool=planes.pooling(nn.MaxPool2d, 2, stride=2) if number == len(widths) else None,
                )
        if hidden is None:
            hidden = (512, 512) if form == 32 else (4096, 4096)
        super().__init__(layers | _classifier(planes.features, hidden, classes, activation, dropout), initialization)


def _classifier(
    width: int, hidden: Sequence[int], classes: int, activation: Activation, dropout: float
) -> dict[str, nn.Module]:
    """Make linear layers behind the convolutions, whose flattened outputs are ``width`` numbers."""
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    for number, size in enumerate(hidden, start=1):
        layers[f"fc{number}"] = stage(
            linear=nn.Linear(width, size),
            act=activation_module(activation),
            drop=nn.Dropout(dropout) if dropout else None,
        )
        width = size
    return layers | {"head": nn.Linear(width, classes)}

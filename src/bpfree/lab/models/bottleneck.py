"""A fully connected network with a layer of which only a part learns (Launay et al. 2019, figure 4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpfree.lab.errors import SettingsError
from bpfree.lab.models.activations import Activation
from bpfree.lab.models.mlp import MLP

_BATCH = 128  # the batch of the paper


class Bottleneck(nn.Linear):
    """A linear layer of whose gradients a fixed random part is kept: ``(N, inputs)`` to ``(N, outputs)``.

    Each element of the gradients of weight, bias and input is kept with probability ``kept`` / inputs, drawn once and
    for all; the others are zero. What is kept of an input's gradient depends on its place in the batch. The output is
    that of the plain layer, bit for bit.

    Args:
        linear: The layer whose weight and bias this takes over.
        kept: b, how many of the inputs' elements are kept in the mean.
        batch: The places in the batch that have masks of their own; further ones repeat them.
    """

    weight_kept: Tensor
    bias_kept: Tensor
    input_kept: Tensor

    def __init__(self, linear: nn.Linear, kept: int, batch: int = _BATCH) -> None:
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        if not 0 <= kept <= linear.in_features:
            raise SettingsError(f"bottleneck {kept} must lie between 0 and the layer's width, {linear.in_features}.")
        shapes = {"weight": linear.weight.shape, "bias": linear.bias.shape, "input": (batch, linear.in_features)}
        for name, shape in shapes.items():
            self.register_buffer(f"{name}_kept", torch.rand(shape) < kept / linear.in_features)

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output for ``input``."""
        places = torch.arange(len(input), device=input.device) % len(self.input_kept)
        return F.linear(
            _partly(input, self.input_kept[places]),
            _partly(self.weight, self.weight_kept),
            _partly(self.bias, self.bias_kept),
        )


def _partly(value: Tensor, kept: Tensor) -> Tensor:
    """Return ``value``; its gradient is set to zero wherever ``kept`` is false."""
    return torch.where(kept, value, value.detach())


class BottleneckMLP(MLP):
    """An MLP whose second linear layer is a :class:`Bottleneck`: ``(N, *shape)`` to ``(N, classes)``.

    Its weights are those of the MLP at the same seed, for every size of the bottleneck.

    The published code takes this layer for none and lets no feedback enter before it: the first layer learns from what
    backpropagation carries down through the bottleneck from the tap above, and alignment is measured behind it too.

    Args:
        shape: The shape of one input.
        classes: The number of outputs.
        bottleneck: b, from 0 to the width of the first hidden layer; at that width all of the second layer learns.
        hidden: The width of each hidden layer, two at least.
        activation: The non-linearity behind each hidden layer.
    """

    aligned_layers = ("2",)

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        bottleneck: int = 800,
        hidden: Sequence[int] = (800, 800, 800),
        activation: Activation = "tanh",
    ) -> None:
        if len(hidden) < 2:
            raise SettingsError(f"BottleneckMLP needs at least two hidden layers, not hidden={list(hidden)}.")
        super().__init__(shape, classes, hidden, activation)
        second, linear = [(place, layer) for place, layer in enumerate(self) if isinstance(layer, nn.Linear)][1]
        self[second] = Bottleneck(linear, bottleneck)

    @staticmethod
    def suggested_taps(  # type: ignore[override]  # models are asked with their own options, by name
        hidden: Sequence[int] = (800, 800, 800), **_: object
    ) -> tuple[str, ...]:
        """Return the non-linearities of all hidden layers except the first."""
        return tuple(str(2 * layer) for layer in range(2, len(hidden) + 1))

"""A fully connected network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import nn

from bpfree.lab.models.activations import Activation, activation_module


class MLP(nn.Sequential):
    """Flatten, then linear layers with a non-linearity between them: ``(N, *shape)`` to ``(N, classes)``.

    Args:
        shape: The shape of one input.
        classes: The number of outputs.
        hidden: The width of each hidden layer.
        activation: The non-linearity behind each hidden layer.
        dropout: The fraction of activations that dropout sets to zero behind each hidden layer; 0 leaves it out.
        initialization: PyTorch's own (``"torch"``), or normal weights of variance 2 / inputs and no bias (``"he"``, He
            et al. 2015), under which ReLU layers keep the size of their inputs.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        hidden: Sequence[int] = (1024, 1024),
        activation: Activation = "tanh",
        dropout: float = 0.0,
        initialization: Literal["torch", "he"] = "torch",
    ) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        width = math.prod(shape)
        for size in hidden:
            layers += [nn.Linear(width, size), activation_module(activation)]
            if dropout:
                layers.append(nn.Dropout(dropout))
            width = size
        super().__init__(*layers, nn.Linear(width, classes))
        if initialization == "he":
            for layer in self:
                if isinstance(layer, nn.Linear):
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                    nn.init.zeros_(layer.bias)

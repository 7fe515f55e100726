"""A fully connected network."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from bpfree.lab.models.activations import Activation, activation_module
from bpfree.lab.models.initialization import BatchNorm, Initialization, begin_norms, initialize


class MLP(nn.Sequential):
    """Flatten, then linear layers with a non-linearity between them: ``(N, *shape)`` to ``(N, classes)``.

    Launay et al. 2019, table 2, have ``hidden=[800, 800, 800]``, ``dropout_before_activation=True`` and a row for each
    other option; feedback enters behind the non-linearity, or behind batch normalization where there is one. GrAPE,
    table 1, has ``hidden=[1024, 1024]``, or three of them: "3 layers" may mean either.

    Args:
        shape: The shape of one input.
        classes: The number of outputs.
        hidden: The width of each hidden layer.
        activation: The non-linearity behind each hidden layer.
        dropout: The fraction of activations that dropout sets to zero behind each hidden layer; 0 leaves it out.
        initialization: PyTorch's own (``"torch"``), or normal weights of variance 2 / inputs and no bias (``"he"``, He
            et al. 2015), under which ReLU layers keep the size of their inputs.
        negative_slope: The slope of ``leaky_relu`` below zero; the other non-linearities do not use it.
        batch_norm: Normalize over the batch, behind each non-linearity; ``"uniform"`` with factors that begin uniform
            on (0, 1), as in PyTorch before 1.2, and not at 1.
        input_dropout: The fraction of inputs that dropout sets to zero.
        dropout_before_activation: Dropout stands between the linear layer and its non-linearity.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        hidden: Sequence[int] = (1024, 1024),
        activation: Activation = "tanh",
        dropout: float = 0.0,
        initialization: Initialization = "torch",
        negative_slope: float = 0.01,
        batch_norm: BatchNorm = False,
        input_dropout: float = 0.0,
        dropout_before_activation: bool = False,
    ) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        if input_dropout:
            layers.append(nn.Dropout(input_dropout))
        width = math.prod(shape)
        for size in hidden:
            layers.append(nn.Linear(width, size))
            behind = [activation_module(activation, negative_slope)]
            if batch_norm:
                behind.append(nn.BatchNorm1d(size))
            if dropout:
                behind.insert(0 if dropout_before_activation else len(behind), nn.Dropout(dropout))
            layers += behind
            width = size
        super().__init__(_named([*layers, nn.Linear(width, classes)]))
        initialize(self, initialization)
        begin_norms(self, batch_norm)

    @staticmethod
    def suggested_taps(batch_norm: BatchNorm = False, **_: object) -> tuple[str, ...] | None:
        """Return the papers' taps: every batch normalization, or None for every non-linearity."""
        return ("norm*",) if batch_norm else None


def _named(layers: Sequence[nn.Module]) -> OrderedDict[str, nn.Module]:
    """Name layers by their numbers, but normalizations, the taps, so that a pattern can match them."""
    norms = [layer for layer in layers if isinstance(layer, nn.BatchNorm1d)]
    names = {id(norm): f"norm{number}" for number, norm in enumerate(norms, start=1)}
    return OrderedDict((names.get(id(layer), str(number)), layer) for number, layer in enumerate(layers))

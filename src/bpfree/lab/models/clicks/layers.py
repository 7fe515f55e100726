"""The parts that several models of clicks share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import bpfree
from bpfree.lab.errors import SettingsError
from bpfree.lab.models.clicks.choices import check_counts

PERCEPTRON_TAPS = "perceptron.*.tap"
"""The pattern of the taps of a model's ``perceptron``."""


def second_order(vectors: Tensor) -> Tensor:
    r"""Return the sum of the inner products of all pairs of fields, ``(N, fields, width)`` to ``(N,)``.

    .. math:: \sum_{f < g} v_f \cdot v_g = \tfrac{1}{2} \Bigl( \bigl\|\sum_f v_f\bigr\|^2 - \sum_f \|v_f\|^2 \Bigr)

    Source: Rendle 2010, lemma 3.1.
    """
    return 0.5 * (vectors.sum(1).square().sum(1) - vectors.square().sum((1, 2)))


class Perceptron(nn.Sequential):
    """Blocks of a linear map, batch normalization, ReLU and dropout, with a tap behind each: ``(N, n)`` to ``(N, m)``.

    Args:
        inputs: n.
        hidden: The width of each block; m is the last one.
        dropout: The fraction of activations that dropout sets to zero.

    Raises:
        SettingsError: There is no block, or one of no width.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], dropout: float) -> None:
        if not hidden or min(hidden) < 1:
            raise SettingsError(f"hidden {list(hidden)}: the width of one block or more, each at least 1.")
        super().__init__(*(_block(n, m, dropout) for n, m in zip([inputs, *hidden], hidden, strict=False)))


def _block(inputs: int, outputs: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            linear=nn.Linear(inputs, outputs),
            norm=nn.BatchNorm1d(outputs),
            relu=nn.ReLU(),
            dropout=nn.Dropout(dropout),
            tap=bpfree.Tap(),
        )
    )


class CrossLayer(nn.Module):
    r"""One layer of a cross network, :math:`x_{l+1} = x_0 (w_l \cdot x_l) + b_l + x_l`: two ``(N, n)`` to ``(N, n)``.

    Source: Wang et al. 2017, equation 3.

    Args:
        width: n.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Linear(width, 1, bias=False)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, first: Tensor, x: Tensor) -> Tensor:
        """Return the next x of the network's input ``first`` and of ``x``."""
        return torch.addcmul(x + self.bias, first, self.weight(x))


class CrossNetwork(nn.Module):
    """Cross layers on one input, with a tap between each two: ``(N, n)`` to ``(N, n)``.

    Behind the last layer stands none: what takes the network's output has one.

    Args:
        width: n.
        layers: The number of layers.
    """

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        check_counts(layers=layers)
        self.layers = nn.ModuleList(CrossLayer(width) for _ in range(layers))
        self.taps = nn.ModuleList(bpfree.Tap() for _ in range(layers - 1))

    def forward(self, first: Tensor) -> Tensor:
        """Return the last layer's output."""
        x = self.layers[0](first, first)
        for tap, layer in zip(self.taps, self.layers[1:], strict=True):
            x = layer(first, tap(x))
        return x

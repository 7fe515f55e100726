"""Attention without queries and keys."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn

from bpfree.lab.models.transformer.placement import tap_or_none, through


class Mixing(nn.Module):
    """Values, mixed over tokens, and a linear map: ``(N, T, d)`` to ``(N, T, d)``.

    Args:
        width: d.
        heads: The number of mixings, each of ``d / heads`` values.
        taps: The names of the block's taps.
    """

    def __init__(self, width: int, heads: int, taps: Collection[str]) -> None:
        super().__init__()
        self.heads = heads
        self.value = nn.Linear(width, width)
        self.value_tap = tap_or_none("attention.value_tap", taps)
        self.mixing_tap = tap_or_none("attention.mixing_tap", taps)
        self.out = nn.Linear(width, width)

    def weights(self, h: Tensor) -> Tensor:
        """Return how much of value j token i gets, ``(heads, T, T)`` or ``(N, heads, T, T)``; 0 for j > i."""
        raise NotImplementedError

    def forward(self, h: Tensor) -> Tensor:
        """Return for each token the weighted values of itself and of the tokens before it."""
        weights = self.weights(h)
        values = through(self.value_tap, self.value(h)).unflatten(2, (self.heads, -1)).transpose(1, 2)
        return self.out(through(self.mixing_tap, (weights @ values).transpose(1, 2).flatten(2)))

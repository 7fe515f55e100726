"""Synthesizers: attention whose scores depend on no other token (Tay et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor, nn

from bpfree.lab.models.transformer.mixing import Mixing
from bpfree.lab.models.transformer.placement import tap_or_none, through


class Synthesizer(Mixing):
    """A mixing by the softmax of scores, over the tokens up to each one's own.

    Args:
        scores: Maps ``(N, T, d)`` to scores ``(heads, T, T)`` or ``(N, heads, T, T)``.
        width: d.
        heads: The number of mixings.
        context: The largest number of tokens.
        dropout: The fraction of the mixing's weights that dropout sets to zero.
        taps: The names of the block's taps.
    """

    later: Tensor

    def __init__(
        self, scores: nn.Module, width: int, heads: int, context: int, dropout: float, taps: Collection[str]
    ) -> None:
        super().__init__(width, heads, taps)
        self.scores = scores
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("later", torch.ones(context, context, dtype=torch.bool).triu(1), persistent=False)

    def weights(self, h: Tensor) -> Tensor:
        """Return how much of value j token i gets, shaped as the scores."""
        tokens = h.shape[1]
        scores = self.scores(h).masked_fill(self.later[:tokens, :tokens], -math.inf)
        return self.dropout(scores.softmax(-1))


class DenseScores(nn.Module):
    """Scores that a network computes from each token: d hidden units, ReLU, one score for each head and place."""

    def __init__(self, width: int, heads: int, context: int, taps: Collection[str]) -> None:
        super().__init__()
        self.heads = heads
        self.hidden = nn.Linear(width, width)
        self.relu = nn.ReLU()
        self.hidden_tap = tap_or_none("attention.scores.hidden_tap", taps)
        self.out = nn.Linear(width, heads * context)

    def forward(self, h: Tensor) -> Tensor:
        """Return ``(N, heads, T, T)``: what token i says of place j."""
        of_places = self.out(through(self.hidden_tap, self.relu(self.hidden(h)))).unflatten(2, (self.heads, -1))
        return of_places[..., : h.shape[1]].transpose(1, 2)


class RandomScores(nn.Module):
    """Scores that are learned for each head and pair of places, the same for all tokens.

    They begin uniform within sqrt(6) / context of 0, so a token sees all tokens up to itself nearly alike at first.
    """

    def __init__(self, heads: int, context: int) -> None:
        super().__init__()
        bound = math.sqrt(6) / context
        self.weight = nn.Parameter(torch.empty(heads, context, context).uniform_(-bound, bound))

    def forward(self, h: Tensor) -> Tensor:
        """Return ``(heads, T, T)``."""
        return self.weight[:, : h.shape[1], : h.shape[1]]

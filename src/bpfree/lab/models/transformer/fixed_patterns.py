"""Attention by fixed patterns (Raganato et al. 2020)."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from bpfree.lab.errors import SettingsError
from bpfree.lab.models.transformer.mixing import Mixing


class FixedPatterns(Mixing):
    """Four heads whose mixing never changes, and in which no token sees a later one.

    A token i, counted from 0, gets the values of: itself; the token before it; the tokens 0 to i - 2, all alike; and
    the same tokens with weights proportional to (j + 1)^3, most of the latest. A token that has no such tokens before
    it gets the first one's. These are the patterns that Launay et al. 2020 adapted from Raganato et al. 2020 (who have
    seven, some of later tokens, and no even one). Their code ends at i - 3 in place of i - 2, and leaves out the linear
    map behind the mixing.

    Args:
        width: d.
        heads: 4.
        context: The largest number of tokens.
        taps: The names of the block's taps.

    Raises:
        SettingsError: Another number of heads.
    """

    patterns: Tensor

    def __init__(self, width: int, heads: int, context: int, taps: Collection[str]) -> None:
        if heads != 4:
            raise SettingsError(f"attention 'fixed' has four patterns, one for each head: heads=4, not {heads}.")
        super().__init__(width, heads, taps)
        self.register_buffer("patterns", causal_patterns(context), persistent=False)

    def weights(self, h: Tensor) -> Tensor:
        """Return the patterns, ``(4, T, T)``."""
        return self.patterns[:, : h.shape[1], : h.shape[1]]


def causal_patterns(context: int) -> Tensor:
    """Return how much of value j token i gets in each head, ``(4, context, context)``; every row sums to 1."""
    places = torch.arange(context)
    itself = torch.eye(context)
    before = itself[(places - 1).clamp(min=0)]
    seen = (places <= (places - 2).clamp(min=0).unsqueeze(1)).to(itself.dtype)
    even, latest = (weights / weights.sum(1, keepdim=True) for weights in (seen, seen * (places + 1) ** 3))
    return torch.stack([itself, before, even, latest])

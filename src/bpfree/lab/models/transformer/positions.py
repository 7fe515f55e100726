"""The vectors that tell a transformer the places of tokens."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

Positions: TypeAlias = Literal["learned", "sinusoidal"]

EMBEDDING_STD = 0.02  # Radford et al. 2019


def learned(context: int, width: int) -> nn.Embedding:
    """Return a learned vector for each of ``context`` positions, drawn from the global random state."""
    positions = nn.Embedding(context, width)
    nn.init.normal_(positions.weight, std=EMBEDDING_STD)
    return positions


class Waves(nn.Module):
    """Fixed positions: sines and cosines of wavelengths from 2 pi to 10,000 * 2 pi; int64 ``(T,)`` to ``(T, d)``."""

    waves: Tensor

    def __init__(self, context: int, width: int) -> None:
        super().__init__()
        angles = torch.arange(context).unsqueeze(1) * 10_000 ** (-torch.arange(0, width, 2) / width)
        self.register_buffer("waves", torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1), persistent=False)

    def forward(self, places: Tensor) -> Tensor:
        """Return the vectors of these positions."""
        return self.waves[places]

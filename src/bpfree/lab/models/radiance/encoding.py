"""Positional encoding: coordinates as waves of rising frequency."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Waves(nn.Module):
    r"""Coordinates, and sines and cosines of them: ``(..., 3)`` to ``(..., 3 + 6 frequencies)``.

    $$x, \sin x, \cos x, \sin 2x, \cos 2x, \dots, \sin 2^{L-1} x, \cos 2^{L-1} x$$

    The three coordinates stand side by side in every term. This is the order and the scale of the code of Mildenhall et
    al. 2020, whose text has another factor pi, and no x.

    Args:
        frequencies: L.
    """

    factors: Tensor

    def __init__(self, frequencies: int) -> None:
        super().__init__()
        self.register_buffer("factors", 2.0 ** torch.arange(frequencies), persistent=False)
        self.size = 3 + 6 * frequencies

    def forward(self, x: Tensor) -> Tensor:
        """Return the encoded coordinates."""
        angles = x[..., None, :] * self.factors[:, None]
        waves = torch.stack([angles.sin(), angles.cos()], dim=-2).flatten(-3)
        return torch.cat([x, waves], dim=-1)

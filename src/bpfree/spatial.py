"""What the numbers of one row of B stand for: single features, or a few spatial modes of every channel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import product as pairs

import torch
from torch import Tensor

from bpfree.taps import product


@dataclass(frozen=True)
class Form:
    """How one row of B_l, n_l numbers, is made of ``size`` coefficients.

    Without ``positions`` a coefficient is a feature, and ``size`` is n_l. With them a row is a map over channels and
    positions, each channel's a sum of the ``modes`` lowest cosine modes, and ``size`` is channels x modes. The modes
    are orthonormal, so signals, norms and inner products are those of the coefficients.
    """

    size: int
    positions: tuple[int, ...] = ()
    modes: int = 0

    @staticmethod
    def of(features: tuple[int, ...], modes: int | None) -> Form:
        """The form for a tap of these features, ``(channels, *positions)``; None gives every feature its own number."""
        positions = features[1:]
        if modes is None or modes >= product(positions):
            return Form(product(features))
        return Form(features[0] * modes, positions, modes)

    @property
    def channels(self) -> int:
        """The number of channels, each of ``modes`` coefficients."""
        return self.size // self.modes

    def expand(self, coefficients: Tensor) -> Tensor:
        """Rows of ``size`` coefficients, shape ``(k, size)``, as rows of features, shape ``(k, n_l)``."""
        if not self.positions:
            return coefficients
        basis = _basis(self.positions, self.modes, coefficients.dtype, coefficients.device)
        return (coefficients.reshape(-1, self.modes) @ basis).reshape(-1, self.channels * basis.shape[1])

    def expand_channels_last(self, coefficients: Tensor) -> Tensor:
        """The same of a form with positions, the features in the order positions x channels."""
        basis = _basis(self.positions, self.modes, coefficients.dtype, coefficients.device)
        maps = basis.T @ coefficients.reshape(-1, self.channels, self.modes).mT
        return maps.reshape(len(coefficients), -1)

    def reduce(self, rows: Tensor) -> Tensor:
        """The coefficients ``(k, size)`` of the projection of rows of features ``(k, n_l)`` onto the modes."""
        if not self.positions:
            return rows
        basis = _basis(self.positions, self.modes, rows.dtype, rows.device)
        return (rows.reshape(-1, product(self.positions)) @ basis.T).reshape(-1, self.size)


@lru_cache(maxsize=64)
def _basis(positions: tuple[int, ...], modes: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return cosine_modes(positions, modes).to(device, dtype)


def cosine_modes(positions: tuple[int, ...], modes: int) -> Tensor:
    """The ``modes`` lowest modes of the discrete cosine transform (DCT-II) on a grid.

    They are ordered by frequency, the constant first; float64, orthonormal, shape ``(modes, prod(positions))``.
    """
    frequencies = sorted(
        pairs(*(range(size) for size in positions)),
        key=lambda mode: (sum((k / size) ** 2 for k, size in zip(mode, positions, strict=True)), mode),
    )
    return torch.stack([_mode(mode, positions) for mode in frequencies[:modes]])


def _mode(mode: tuple[int, ...], positions: tuple[int, ...]) -> Tensor:
    grid = torch.ones((), dtype=torch.float64)
    for k, size in zip(mode, positions, strict=True):
        wave = torch.cos(math.pi * k * (torch.arange(size, dtype=torch.float64) + 0.5) / size)
        grid = grid[..., None] * (wave / wave.norm())
    return grid.flatten()

"""The forms of a row of B: one number per feature, or a few spatial modes of every channel."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import product as pairs
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bpfree.axes.sites import product


class Form(NamedTuple):  # compared in every pass, and a tuple is quicker at it
    """The form of one row of B_l: n_l numbers, made of ``size`` coefficients.

    Without ``positions`` a coefficient is a feature, and ``size`` is n_l. With them a row is a map over channels and
    positions, each channel's a sum of the ``modes`` lowest cosine modes, and ``size`` is channels x modes. The modes
    are orthonormal, so signals, norms and inner products are those of the coefficients.

    ``channel`` is the axis of the channels among the features: 0 for ``(channels, *positions)``.
    """

    size: int
    positions: tuple[int, ...] = ()
    modes: int = 0
    channel: int = 0

    @staticmethod
    @lru_cache(maxsize=4096)
    def of(features: tuple[int, ...], modes: int | None, channel: int = 0, *, share: bool = False) -> Form:
        """Return the form for a tap of these features, of which axis ``channel`` is the channels.

        Args:
            features: Their sizes.
            modes: The number of modes of each channel; None gives every feature its own number.
            channel: Which axis is the channels.
            share: True if another pass may have another number of positions: None then gives them one number a
                channel in common, and no number of positions is too small for modes.
        """
        positions = features[:channel] + features[channel + 1 :]
        modes = 1 if share and modes is None else modes
        if modes is None or (modes >= product(positions) and not share):
            return Form(product(features))
        return Form(features[channel] * modes, positions, modes, channel)

    @property
    def channels(self) -> int:
        """The number of channels, each of ``modes`` coefficients."""
        return self.size // self.modes

    @property
    def channels_first(self) -> bool:
        """True if the channels lie before all positions."""
        return self.channel == 0

    def expand(self, coefficients: Tensor) -> Tensor:
        """Return rows of ``size`` coefficients, shape ``(k, size)``, as rows of features, shape ``(k, n_l)``."""
        if not self.positions:
            return coefficients
        if self.modes == 1:
            maps = (coefficients / math.sqrt(product(self.positions))).unsqueeze(2)
            return self._arranged(maps.expand(-1, -1, product(self.positions)))
        basis = _basis(self.positions, self.modes, coefficients.dtype, coefficients.device)
        return self._arranged(coefficients.reshape(len(coefficients), self.channels, self.modes) @ basis)

    def _arranged(self, maps: Tensor) -> Tensor:
        """Maps ``(k, channels, positions)`` as rows in the order of the features."""
        if not self.channels_first:
            maps = maps.reshape(len(maps), self.channels, *self.positions).movedim(1, self.channel + 1)
        return maps.reshape(len(maps), self.channels * product(self.positions))

    def expand_channels_last(self, coefficients: Tensor) -> Tensor:
        """Return the same for a form with positions, with features in the order positions x channels."""
        basis = _basis(self.positions, self.modes, coefficients.dtype, coefficients.device)
        maps = basis.T @ coefficients.reshape(-1, self.channels, self.modes).mT
        return maps.reshape(len(coefficients), -1)

    def reduce(self, rows: Tensor) -> Tensor:
        """Return the coefficients ``(k, size)`` of the projection of rows of features ``(k, n_l)`` onto the modes."""
        if not self.positions:
            return rows
        maps = rows
        if not self.channels_first:
            before, behind = self.positions[: self.channel], self.positions[self.channel :]
            maps = rows.reshape(len(rows), *before, self.channels, *behind).movedim(self.channel + 1, 1)
        maps = maps.reshape(len(rows), self.channels, product(self.positions))
        if self.modes == 1:
            return maps.sum(2) / math.sqrt(product(self.positions))
        basis = _basis(self.positions, self.modes, rows.dtype, rows.device)
        return (maps @ basis.T).reshape(len(rows), self.size)


@lru_cache(maxsize=64)
def _basis(positions: tuple[int, ...], modes: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    found = cosine_modes(positions, modes)
    # A sequence may be shorter than its modes are many: those beyond carry nothing.
    return F.pad(found, (0, 0, 0, modes - len(found))).to(device, dtype)


def cosine_modes(positions: tuple[int, ...], modes: int) -> Tensor:
    """Return the ``modes`` lowest modes of the discrete cosine transform (DCT-II) on a grid.

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

"""Perturbations from the rows of a Hadamard matrix: over many passes, no feature blurs the estimate of another.

The estimate of one column of J holds the other columns too, each times the product of its signs with this column's. Of
random signs that product is sqrt(N) in N rows. The columns of a Hadamard matrix of the order M are orthogonal: where M
rows have passed, one after the other, all products are zero, and the mean of the estimates is J, if J has stood still.

The matrix is Sylvester's, H[r, k] = (-1)^popcount(r & k). Its rows come in a random order, its columns with random
signs, both drawn anew every M rows: so each row by itself is a row of random signs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from bpfree.feedback.random import derived_seed
from bpfree.forward_mode.perturbations import Maker, signs_of_bits


class Turn(NamedTuple):
    """The place of an estimating pass in a sequence of such passes.

    Attributes:
        seed: That of the sequence.
        number: The number of the pass.
        before: The columns of taps in earlier stages of a pipeline.
        behind: The columns of taps in later ones.
    """

    seed: int
    number: int
    before: int = 0
    behind: int = 0

    def columns(self, sizes: Mapping[str, int]) -> Columns:
        """Give each tap its own columns.

        Args:
            sizes: The number of coefficients of each tap's perturbation, in forward order.
        """
        firsts, first = {}, self.before
        for name, size in sizes.items():
            firsts[name] = first
            first += columns_of(size)
        order = 1 << max(3, (first + self.behind - 1).bit_length())
        return Columns(self.seed, self.number, order, firsts)


@dataclass(frozen=True)
class Columns:
    """The columns of the taps of one pass.

    Attributes:
        seed: That of the sequence of passes.
        number: The number of the pass.
        order: M, a power of two.
        firsts: The first column of each tap.
    """

    seed: int
    number: int
    order: int
    firsts: Mapping[str, int]

    def draw(self, name: str, shape: tuple[int, int], like: Tensor) -> HadamardDraw:
        """Return the recipe of a tap's perturbation of this shape, for an output ``like`` this."""
        first_row = self.number * shape[0]
        return HadamardDraw(shape, self.seed, first_row, self.firsts[name], self.order, like.dtype, like.device)


class HadamardDraw(NamedTuple):  # made for every tap in every pass, and a tuple is quicker at it
    """The recipe of one tap's perturbation, by which it can be made again.

    Attributes:
        shape: ``(N, m_l)``.
        seed: That of the sequence of passes.
        first_row: The number of its first row in that sequence.
        first_column: The number of its first column in the matrix, a multiple of 8.
        order: M.
        dtype: The precision.
        device: The device.
    """

    shape: tuple[int, int]
    seed: int
    first_row: int
    first_column: int
    order: int
    dtype: torch.dtype
    device: torch.device

    def make(self) -> Tensor:
        """Make the numbers, the same each time."""
        return self._of_bits(self._bits())

    def keep(self) -> tuple[Maker, Tensor]:
        """Return a maker that keeps one bit a number, and the numbers."""
        bits = self._bits()
        return partial(self._of_bits, bits.to(torch.uint8)), self._of_bits(bits)

    def _of_bits(self, bits: Tensor) -> Tensor:
        return signs_of_bits((self.shape[0], 8 * bits.shape[1]), self.dtype, bits)[:, : self.shape[1]].contiguous()

    def _bits(self) -> Tensor:
        """Return eight signs a byte, shape ``(N, m_l / 8)``, rounded up."""
        first, last = self.first_column // 8, (self.first_column + columns_of(self.shape[1])) // 8
        parts: list[Tensor] = []
        row, end = self.first_row, self.first_row + self.shape[0]
        while row < end or not parts:  # an empty batch has a part of no rows
            round_, start = divmod(row, self.order)
            count = min(end - row, self.order - start)
            rows, flips = _drawn_order(self.order, derived_seed(self.seed, round_), self.device)
            parts.append(_bytes(rows[start : start + count], first, last, self.order) ^ flips[first:last])
            row += count
        return torch.cat(parts)


def columns_of(size: int) -> int:
    """Return how many columns of the matrix a tap of so many coefficients takes: whole bytes of signs."""
    return -(-size // 8) * 8


def _bytes(rows: Tensor, first: int, last: int, order: int) -> Tensor:
    """Return the signs of some rows in the columns 8 first to 8 last - 1: bit j of a byte is that of column 8 q + j."""
    # popcount(r & k) for k = 8 q + j is popcount((r >> 3) & q) + popcount(r & j).
    blocks = torch.arange(first, last, device=rows.device)
    odd = _parities(order // 8, rows.device)[(rows >> 3)[:, None] & blocks]
    return _patterns(rows.device)[rows & 7][:, None] ^ (odd * 255)


@lru_cache(maxsize=8)  # two are in use where the rows of a pass are the last of one order and the first of the next
def _drawn_order(order: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the order of the rows, and the bytes that change the signs of columns."""
    generator = torch.Generator().manual_seed(seed)  # on the CPU, so that every machine draws the same
    rows = torch.randperm(order, generator=generator)
    flips = torch.randint(256, (order // 8,), generator=generator)
    return rows.to(device), flips.to(device)


@lru_cache(maxsize=16)
def _parities(count: int, device: torch.device) -> Tensor:
    """Return popcount(i) mod 2 for i below a power of two."""
    found = torch.zeros(1, dtype=torch.int64)
    while len(found) < count:
        found = torch.cat([found, 1 - found])
    return found.to(device)


@lru_cache(maxsize=4)
def _patterns(device: torch.device) -> Tensor:
    """Return for each r below 8 a byte whose bit j is popcount(r & j) mod 2."""
    numbers = torch.arange(8)
    odd = _parities(8, torch.device("cpu"))[numbers[:, None] & numbers]
    return (odd << numbers).sum(1).to(device)

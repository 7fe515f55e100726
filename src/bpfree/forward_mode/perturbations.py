"""Perturbations v_l of the taps: drawn from a seed, and kept as one bit a number where they are signs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from bpfree.axes.sites import product

Perturbations: TypeAlias = Literal["normal", "rademacher", "hadamard"]

_FEW = 2**15
"""So many signs are kept as they are: to make them of their bits again takes longer than other work on them."""

Maker: TypeAlias = Callable[[], Tensor]
"""Makes a perturbation, the same each time."""


def perturbation(shape: tuple[int, int], kind: Perturbations, like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw numbers of mean 0 and variance 1: N(0, 1) for ``"normal"``, else -1 or 1."""
    return _drawn(shape, kind, like.dtype, like.device, generator)


def _drawn(
    shape: tuple[int, int], kind: Perturbations, dtype: torch.dtype, device: torch.device, generator: torch.Generator
) -> Tensor:
    if kind == "normal":
        return torch.empty(shape, dtype=dtype, device=device).normal_(generator=generator)
    return signs_of_bits(shape, dtype, _random_bytes(shape, device, generator))


def _random_bytes(shape: tuple[int, int], device: torch.device, generator: torch.Generator) -> Tensor:
    # Eight signs a random byte, by a table: on a CPU several times faster than a random number for each.
    return torch.empty(-(-product(shape) // 8), dtype=torch.int64, device=device).random_(0, 256, generator=generator)


def signs_of_bits(shape: tuple[int, int], dtype: torch.dtype, bytes_: Tensor) -> Tensor:
    """Return -1 and 1 for the bits of bytes, the lowest bit of each first; bits beyond ``shape`` are left out."""
    count = product(shape)
    signs = _signs(dtype, bytes_.device).index_select(0, bytes_.flatten().to(torch.int64))
    return (signs if count % 8 == 0 else signs.flatten()[:count]).view(shape)


@lru_cache(maxsize=64)
def _signs(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the 8 bits of every byte as -1 and 1."""
    return (((torch.arange(256)[:, None] >> torch.arange(8)) & 1) * 2 - 1).to(device, dtype)


class Draw(NamedTuple):  # made for every tap in every pass, and a tuple is quicker at it
    """The recipe of one tap's perturbation, by which it can be drawn again.

    Attributes:
        shape: ``(N, m_l)``.
        kind: The distribution.
        seed: The seed.
        dtype: The precision.
        device: The device.
    """

    shape: tuple[int, int]
    kind: Perturbations
    seed: int
    dtype: torch.dtype
    device: torch.device

    def make(self) -> Tensor:
        """Draw the numbers, the same each time."""
        return _drawn(self.shape, self.kind, self.dtype, self.device, self._generator())

    def keep(self) -> tuple[Maker, Tensor]:
        """Return a maker that need not draw the numbers again, and the numbers. Many signs take one bit each."""
        if self.kind == "normal" or product(self.shape) <= _FEW:
            numbers = self.make()
            return partial(self._unchanged, numbers, numbers._version), numbers
        bytes_ = _random_bytes(self.shape, self.device, self._generator())
        return partial(signs_of_bits, self.shape, self.dtype, bytes_.to(torch.uint8)), signs_of_bits(
            self.shape, self.dtype, bytes_
        )

    def _unchanged(self, numbers: Tensor, version: int) -> Tensor:
        # An in-place operation behind the tap writes to the tangent, which these numbers are.
        return numbers if numbers._version == version else self.make()

    def _generator(self) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(self.seed)


class Draws(Sequence[Tensor]):
    """Perturbations that are made when they are asked for.

    Args:
        makers: One maker for each tap.
    """

    def __init__(self, makers: Sequence[Maker]) -> None:
        self._makers = makers

    def __len__(self) -> int:
        return len(self._makers)

    def __getitem__(self, index: Any) -> Any:
        """Return the perturbation of tap ``index``."""
        return self._makers[index]()

    def only(self, numbers: Sequence[int]) -> Draws:
        """Return those of some taps."""
        return Draws([self._makers[number] for number in numbers])

"""Wide errors: one matrix R for all taps takes an error of c numbers to r, and the taps' matrices begin there."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bpfree.errors import StateError
from bpfree.feedback.lazy_buffers import LazyBuffers
from bpfree.feedback.random import derived_seed, draw


class Reduction(LazyBuffers):
    r"""The matrix R, ``reduction["R"]``, shape ``(c, r)``: fixed, normal with variance 1/r.

    .. math:: B_l = R A_l, \qquad \mathbb{E}[R R^\top] = I

    Args:
        rank: r.
        seed: The seed of the feedback.
    """

    def __init__(self, rank: int, seed: int) -> None:
        super().__init__()
        self.rank, self._seed = rank, seed

    def size(self, c: int) -> int:
        """Return the length of a reduced error: r, or c if that is no larger."""
        return min(self.rank, c)

    def prepare(self, c: int, like: Tensor) -> None:
        """Draw R for errors of ``c`` numbers, if it is needed and not there yet.

        Raises:
            StateError: A loaded R is of another size.
        """
        if c <= self.rank:
            return
        if "R" not in self:
            drawn = draw((c, self.rank), "normal", torch.Generator().manual_seed(derived_seed(self._seed, "R")))
            self["R"] = drawn.div_(math.sqrt(self.rank)).to(like)
        elif self["R"].shape != (c, self.rank):
            raise StateError(
                f"the loaded feedback has R of shape {tuple(self['R'].shape)}; an error of {c} numbers and "
                f"Feedback(rank={self.rank}) need {(c, self.rank)}."
            )

    def forward(self, rows: Tensor) -> Tensor:
        """Return rows ``(N, c)`` of an error, or of a tensor like it, as ``(N, r)``."""
        return rows @ self["R"].to(rows) if "R" in self else rows

    def widened(self, matrix: Tensor) -> Tensor:
        """Return B_l, ``(c, n)``, from A_l, ``(r, n)``."""
        return self["R"].to(matrix) @ matrix if "R" in self else matrix

"""Inputs that are made when they are asked for, because all of them at once would not fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Lazy:
    """Stands for a tensor of shape ``(n, ...)`` of which only the rows that are asked for are made, each time anew.

    Args:
        make: Rows by number, int64 ``(k,)``, as a tensor of shape ``(k, *shape)``; the same rows every time.
        rows: The numbers of the rows that this has, int64 ``(n,)``.
        shape: The shape of one row.
    """

    def __init__(self, make: Callable[[Tensor], Tensor], rows: Tensor, shape: Sequence[int]) -> None:
        self._make, self._rows = make, rows
        self.shape = torch.Size((len(rows), *shape))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        return self._make(self._rows[index])

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """Return the rows at ``index``, int64 ``(k,)``, as a tensor; ``dim`` must be 0."""
        if dim != 0:
            raise IndexError(f"dim {dim}: only whole rows are made, which lie along dimension 0.")
        return self[index]

    def subset(self, index: Tensor) -> Lazy:
        """Return the rows at ``index``, int64 ``(k,)``, of which none is made yet."""
        return Lazy(self._make, self._rows[index], self.shape[1:])

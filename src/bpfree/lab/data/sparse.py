"""Sparse tensors in compressed rows."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor


def compressed_rows(starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return the matrix whose row i has the ``values`` at places ``starts[i]`` to ``starts[i + 1]``; unchecked."""
    return torch.sparse_csr_tensor(starts, columns, values, shape, check_invariants=False)


def rows(matrix: Tensor, places: Tensor) -> Tensor:
    """Return the rows of a matrix (CSR, ``(n, m)``) at these places ``(k,)``, in their order, ``(k, m)``."""
    starts = matrix.crow_indices()
    lengths = starts.diff()[places]
    found = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    # The place of each value in the matrix: that in its new row, counted from where its old one begins.
    at = torch.arange(int(found[-1]), device=places.device) + (starts[places] - found[:-1]).repeat_interleave(lengths)
    return compressed_rows(found, matrix.col_indices()[at], matrix.values()[at], (len(places), matrix.shape[1]))


with warnings.catch_warnings():
    # torch says once in each process that this is in beta state.
    warnings.simplefilter("ignore")
    compressed_rows(torch.tensor([0, 0]), torch.empty(0, dtype=torch.int64), torch.empty(0), (1, 1))

"""Sparse tensors in compressed rows."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor


def compressed_rows(starts: Tensor, columns: Tensor, values: Tensor, shape: Sequence[int]) -> Tensor:
    """The matrix whose row i has ``values`` at ``columns`` from place ``starts[i]`` to ``starts[i + 1]``; unchecked."""
    return torch.sparse_csr_tensor(starts, columns, values, shape, check_invariants=False)


with warnings.catch_warnings():
    # torch says once in each process that this is in beta state.
    warnings.simplefilter("ignore")
    compressed_rows(torch.tensor([0, 0]), torch.empty(0, dtype=torch.int64), torch.empty(0), (1, 1))

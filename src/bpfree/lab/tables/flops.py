"""Operations of matrix products, those with a sparse factor too: torch's counter takes every matrix for a full one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode


def counter() -> FlopCounterMode:
    """Count the operations in matrix products and convolutions: two for each product of two stored numbers."""
    aten = torch.ops.aten
    mapping = {aten.mm: _product, aten.addmm: _added, aten.sparse_sampled_addmm: _sampled}
    return FlopCounterMode(display=False, custom_mapping=mapping)


def _product(left: Tensor, right: Tensor, **_: Any) -> int:
    """Count ``(n, k)`` by ``(k, m)``; if both factors are sparse, the left one counts as full."""
    if right.layout is torch.strided:
        return 2 * _stored(left) * right.shape[1]
    return 2 * _stored(right) * left.shape[0]


def _added(_: Tensor, left: Tensor, right: Tensor, **options: Any) -> int:
    return _product(left, right, **options)


def _sampled(places: Tensor, left: Tensor, _: Tensor, **__: Any) -> int:
    """Count ``(n, k)`` by ``(k, m)`` at the places of a sparse matrix."""
    return 2 * _stored(places) * left.shape[1]


def _stored(matrix: Tensor) -> int:
    return matrix.numel() if matrix.layout is torch.strided else matrix._nnz()


for _formula in (_product, _added, _sampled):
    vars(_formula)["_get_raw"] = True  # how the counter knows that a formula wants tensors and not their shapes

"""Operations of matrix products: torch's counter takes sparse matrices for full ones, and misses attention on CPUs.

Attention is counted as torch counts it on GPUs: all pairs of tokens, also those that a causal mask leaves out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


def counter() -> FlopCounterMode:
    """Count the operations in matrix products and convolutions: two for each product of two stored numbers."""
    aten = torch.ops.aten
    mapping = {
        aten.mm: _product,
        aten.addmm: _added,
        aten.sparse_sampled_addmm: _sampled,
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    }
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


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(
    gradient: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any
) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))


for _formula in (_product, _added, _sampled):
    vars(_formula)["_get_raw"] = True  # how the counter knows that a formula wants tensors and not their shapes

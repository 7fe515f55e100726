"""Products with sparse matrices: bags of words, the adjacencies of graphs, and attention along their edges.

torch's own product transposes the sparse factor in every backward pass, which takes ten times the product, and has no
forward derivative.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from bpfree.lab.data.sparse import compressed_rows


class Pattern:
    """The places of the k values of a sparse matrix ``(n, m)``, sorted by row and then by column.

    Args:
        rows: The row of each value, int64 ``(k,)``.
        columns: Its column, int64 ``(k,)``.
        shape: ``(n, m)``.
    """

    def __init__(self, rows: Tensor, columns: Tensor, shape: tuple[int, int]) -> None:
        self.shape = shape
        # In 32 bits, as torch's library for products takes them: of others it would make copies, five times as slow.
        self.starts, self.columns = _starts(rows, shape[0]), columns.int()
        self.order = torch.argsort(columns, stable=True)
        self.transposed_starts, self.transposed_columns = _starts(columns, shape[1]), rows[self.order].int()

    def rows(self) -> Tensor:
        """Return the row of each value, int64 ``(k,)``."""
        return torch.arange(self.shape[0], device=self.columns.device).repeat_interleave(self.starts.diff())

    def matrix(self, values: Tensor) -> Tensor:
        """Return the matrix with these values ``(k,)``, CSR."""
        return compressed_rows(self.starts, self.columns, values, self.shape)

    def transposed(self, values: Tensor) -> Tensor:
        """Return the transposed of :meth:`matrix`, CSR."""
        values = values.index_select(0, self.order)
        return compressed_rows(self.transposed_starts, self.transposed_columns, values, self.shape[::-1])

    def product(self, values: Tensor, dense: Tensor) -> Tensor:
        """Return the matrix with these values ``(k,)`` times ``dense`` ``(m, c)``, which is ``(n, c)``."""
        return _Product.apply(values, dense, self)

    def scores(self, left: Tensor, right: Tensor) -> Tensor:
        """Return, for each value's row i and column j, the inner product of ``left[i]`` and ``right[j]``.

        Args:
            left: ``(n, c)``.
            right: ``(m, c)``.
        """
        return _Scores.apply(left, right, self)


class Sparse:
    """A sparse matrix ``(n, m)`` that does not learn.

    Args:
        pattern: Where its values are.
        values: They, ``(k,)``.
    """

    def __init__(self, pattern: Pattern, values: Tensor) -> None:
        self.pattern, self.values = pattern, values

    @classmethod
    def of(cls, matrix: Tensor) -> Sparse:
        """Return a sparse tensor ``(n, m)`` as such a matrix; for each tensor it is made once."""
        if matrix not in _KNOWN:
            found = matrix.to_sparse_coo().coalesce()
            _KNOWN[matrix] = cls.at(found.indices(), found.values(), (matrix.shape[0], matrix.shape[1]))
        return _KNOWN[matrix]

    @classmethod
    def at(cls, places: Tensor, values: Tensor, shape: tuple[int, int]) -> Sparse:
        """Return the matrix with ``values`` ``(k,)`` at rows and columns ``(2, k)``; values at one place add up."""
        found = torch.sparse_coo_tensor(places, values, shape, check_invariants=False).coalesce()
        rows, columns = found.indices()
        return cls(Pattern(rows, columns, shape), found.values())

    def __matmul__(self, dense: Tensor) -> Tensor:
        """Return the product with ``(m, c)``, which is ``(n, c)``."""
        return self.pattern.product(self.values, dense)

    def dropout(self, p: float) -> Sparse:
        """Return the same with each value dropped with probability ``p``, the others divided by 1 - ``p``."""
        return Sparse(self.pattern, F.dropout(self.values, p))

    def tensor(self) -> Tensor:
        """Return the matrix as a sparse tensor; :meth:`of` turns it into this matrix again."""
        found = self.pattern.matrix(self.values)
        _KNOWN[found] = self
        return found


_KNOWN = WeakTensorKeyDictionary()
"""Sparse tensor -> the matrix made of it."""


def _starts(sorted_rows: Tensor, n: int) -> Tensor:
    lengths = torch.bincount(sorted_rows, minlength=n)
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).int()


class _Product(torch.autograd.Function):
    """P(a) v of values a and a dense matrix v."""

    # With the context among its arguments: a method of its own for that doubles the time of a small product.
    @staticmethod
    def forward(ctx: Any, values: Tensor, dense: Tensor, pattern: Pattern) -> Tensor:
        ctx.pattern = pattern
        ctx.set_materialize_grads(False)  # what gets no signal is left alone, and has no gradient of zeros
        ctx.save_for_backward(values, dense)
        ctx.save_for_forward(values, dense)
        return pattern.matrix(values) @ dense

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        if gradient is None:
            return None, None, None
        values, dense = ctx.saved_tensors
        of_values = ctx.pattern.scores(gradient, dense) if ctx.needs_input_grad[0] else None
        of_dense = ctx.pattern.transposed(values) @ gradient if ctx.needs_input_grad[1] else None
        return of_values, of_dense, None

    @staticmethod
    def jvp(ctx: Any, of_values: Tensor | None, of_dense: Tensor | None, _: None) -> Tensor:
        values, dense = ctx.saved_tensors
        parts = [] if of_values is None else [ctx.pattern.product(of_values, dense)]
        parts += [] if of_dense is None else [ctx.pattern.product(values, of_dense)]
        return sum(parts[1:], parts[0])


class _Scores(torch.autograd.Function):
    """q_i k_j for every place (i, j) of the pattern."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, pattern: Pattern) -> Tensor:
        ctx.pattern = pattern
        ctx.set_materialize_grads(False)  # what gets no signal is left alone, and has no gradient of zeros
        ctx.save_for_backward(left, right)
        ctx.save_for_forward(left, right)
        empty = pattern.matrix(left.new_zeros(len(pattern.columns)))
        return torch.sparse.sampled_addmm(empty, left, right.T, beta=0.0).values()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        if gradient is None:
            return None, None, None
        left, right = ctx.saved_tensors
        of_left = ctx.pattern.matrix(gradient) @ right if ctx.needs_input_grad[0] else None
        of_right = ctx.pattern.transposed(gradient) @ left if ctx.needs_input_grad[1] else None
        return of_left, of_right, None

    @staticmethod
    def jvp(ctx: Any, of_left: Tensor | None, of_right: Tensor | None, _: None) -> Tensor:
        left, right = ctx.saved_tensors
        parts = [] if of_left is None else [ctx.pattern.scores(of_left, right)]
        parts += [] if of_right is None else [ctx.pattern.scores(left, of_right)]
        return sum(parts[1:], parts[0])

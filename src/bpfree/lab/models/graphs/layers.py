"""torch_geometric's convolutions on a graph that stays the same, as products with sparse matrices."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
import torch_geometric.nn as gnn
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import degree, get_laplacian

from bpfree.lab.models.graphs.sparse import Sparse

Found = TypeVar("Found")


def of_edges(function: Callable[[Tensor, int], Found]) -> Callable[[Tensor, int], Found]:
    """Remember what ``function`` makes of edges ``(2, m)`` among ``n`` nodes, for as long as the edges live."""
    known = WeakTensorKeyDictionary()

    def ask(edges: Tensor, n: int) -> Found:
        if edges not in known or known[edges][0] != n:
            known[edges] = n, function(edges, n)
        return known[edges][1]

    return ask


@of_edges
def normalized(edges: Tensor, n: int) -> Sparse:
    """Return D^-1/2 (A + I) D^-1/2 of Kipf and Welling 2017."""
    places, values = gcn_norm(edges, None, n)
    return Sparse.at(places.flip(0), values, (n, n))


@of_edges
def laplacian(edges: Tensor, n: int) -> Sparse:
    """Return 2 L / 2 - I, L = I - D^-1/2 A D^-1/2; L's largest eigenvalue is taken as 2 (Defferrard et al. 2016)."""
    places, values = get_laplacian(edges, None, "sym", num_nodes=n)
    values = values - (places[0] == places[1]).float()
    return Sparse.at(places.flip(0), values, (n, n))


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Apply dropout to features, dense or sparse, ``(n, features)``."""
    if x.layout == torch.strided:
        return F.dropout(x, p, training)
    return Sparse.of(x).dropout(p).tensor() if training and p else x


class Linear(gnn.Linear):
    """torch_geometric's linear layer, for sparse inputs too."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(n, outputs)`` from ``(n, inputs)``, dense or sparse."""
        if x.layout == torch.strided:
            return super().forward(x)
        out = Sparse.of(x) @ self.weight.T
        return out if self.bias is None else out + self.bias


class GCNConv(gnn.GCNConv):
    """Graph convolution of Kipf and Welling 2017: ``(n, inputs)`` to ``(n, outputs)``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.lin = Linear(inputs, outputs, bias=False, weight_initializer="glorot")

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Return the new features of all nodes."""
        return normalized(edges, len(x)) @ self.lin(x) + self.bias


class ChebConv(gnn.ChebConv):
    """Chebyshev convolution of Defferrard et al. 2016: ``(n, inputs)`` to ``(n, outputs)``.

    Linear maps come before the powers of the Laplacian, which then multiply ``outputs`` columns in place of ``inputs``;
    the sum is Clenshaw's.

    Args:
        inputs: Features of a node.
        outputs: Its new features.
        K: The number of Chebyshev polynomials, the first being 1.
    """

    def __init__(self, inputs: int, outputs: int, K: int = 2) -> None:
        super().__init__(inputs, outputs, K)
        self.lins = nn.ModuleList([Linear(inputs, outputs, bias=False, weight_initializer="glorot") for _ in range(K)])

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Return the new features of all nodes."""
        L = laplacian(edges, len(x))
        first, *others = (lin(x) for lin in self.lins)
        later = last = None
        for part in reversed(others):
            # b_k = x W_k + 2 L b_(k+1) - b_(k+2), b of what is beyond K being zero.
            found = part if later is None else part + 2 * (L @ later)
            later, last = found if last is None else found - last, later
        out = first if later is None else first + L @ later
        return (out if last is None else out - last) + self.bias


class SplineConv(nn.Module):
    """Spline convolution of Fey et al. 2018, degree 1 in one dimension: ``(n, inputs)`` to ``(n, outputs)``.

    torch_geometric's own needs the compiled extension pyg-lib. The mean over a node's neighbours of their features
    times W(u), where W(u) goes in straight lines through ``kernel_size`` matrices, plus the node's own times another.
    The pseudo-coordinate u of an edge is the number of edges into its target, divided by the largest (the transform
    ``TargetIndegree``).

    Args:
        inputs: Features of a node.
        outputs: Its new features.
        kernel_size: The number of matrices, two at least.
    """

    def __init__(self, inputs: int, outputs: int, kernel_size: int = 2) -> None:
        super().__init__()
        self.lins = nn.ModuleList([Linear(inputs, outputs, bias=False) for _ in range(kernel_size)])
        bound = (inputs * kernel_size) ** -0.5
        for lin in self.lins:
            nn.init.uniform_(cast(Linear, lin).weight, -bound, bound)
        self.lin = Linear(inputs, outputs, bias=False, weight_initializer="uniform")
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Return the new features of all nodes."""
        out = self.lin(x) + self.bias
        for lin, neighbours in zip(self.lins, spline_means(edges, len(x), len(self.lins)), strict=True):
            out = out + neighbours @ lin(x)
        return out


def spline_means(edges: Tensor, n: int, kernel_size: int) -> list[Sparse]:
    """Return for each matrix of a spline convolution the mean over neighbours, weighted by its part in W(u)."""
    return _spline_means(kernel_size)(edges, n)


@functools.cache
def _spline_means(kernel_size: int) -> Callable[[Tensor, int], list[Sparse]]:
    @of_edges
    def means(edges: Tensor, n: int) -> list[Sparse]:
        number = degree(edges[1], n)
        u = (number / number.max())[edges[1]]
        parts = spline_basis(u, kernel_size).T / number[edges[1]]
        return [Sparse.at(edges.flip(0), part, (n, n)) for part in parts]

    return means


def spline_basis(u: Tensor, kernel_size: int) -> Tensor:
    """Return the part of each of ``kernel_size`` control points in an open B-spline of degree 1, ``(m, kernel_size)``.

    Args:
        u: Pseudo-coordinates in 0 to 1, ``(m,)``.
        kernel_size: The number of control points, at even distances.
    """
    places = torch.arange(kernel_size, device=u.device)
    return (1 - (u[:, None] * (kernel_size - 1) - places).abs()).clamp(min=0)

"""torch_geometric's convolutions with attention, computed by sparse products instead of along a list of edges."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
import torch_geometric.nn as gnn
from torch import Tensor
from torch_geometric.nn.conv.dna_conv import Linear as GroupedLinear

from bpfree.lab.models.graphs.layers import Linear, normalized, of_edges
from bpfree.lab.models.graphs.sparse import Pattern

_BLOCKS = 4  # that projections of several groups are put together to


class Attended:
    """The pattern of attention: a node's head attends to the same head of its neighbours and itself, in several layers.

    Attributes:
        pattern: Rows are nodes x heads, columns nodes x layers x heads. Values come by node, head and neighbour, and
            the layers of one neighbour follow one another.
        rows: The row of each value.
        weights: The weights of graph convolution, one for each node, head and neighbour.
    """

    def __init__(self, edges: Tensor, n: int, heads: int, layers: int) -> None:
        graph = normalized(edges, n)
        target, source = graph.pattern.rows(), graph.pattern.columns.long()
        head = torch.arange(heads, device=edges.device)
        row = (target[:, None] * heads + head).flatten()
        by_row = torch.argsort(row, stable=True)
        neighbour = (source[:, None].expand(-1, heads), head.expand(len(source), -1))
        of, at = (part.flatten()[by_row] for part in neighbour)
        layer = torch.arange(layers, device=edges.device)
        columns = ((of[:, None] * layers + layer) * heads + at[:, None]).flatten()
        self.rows = row[by_row].repeat_interleave(layers)
        self.pattern = Pattern(self.rows, columns, (n * heads, n * layers * heads))
        self.weights = graph.values[:, None].expand(-1, heads).flatten()[by_row]


@functools.cache
def attended(heads: int, layers: int = 1) -> Callable[[Tensor, int], Attended]:
    """Return the function that makes :class:`Attended` from the edges of a graph, once for each graph."""
    return of_edges(lambda edges, n: Attended(edges, n, heads, layers))


class GATConv(gnn.GATConv):
    """Graph attention of Velickovic et al. 2018: ``(n, inputs)`` to ``(n, heads x outputs)``.

    Args:
        inputs: Features of a node.
        outputs: Its new features, of each head.
        heads: The number of heads.
        dropout: The part of attention weights that is dropped.
    """

    def __init__(self, inputs: int, outputs: int, heads: int = 1, dropout: float = 0.0) -> None:
        super().__init__(inputs, outputs, heads, dropout=dropout)
        self.lin = Linear(inputs, heads * outputs, bias=False, weight_initializer="glorot")

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Return the new features of all nodes."""
        h = self.lin(x).view(-1, self.heads, self.out_channels)
        to = attended(self.heads)(edges, len(x))
        from_target, from_source = ((h * part).sum(-1).flatten() for part in (self.att_dst, self.att_src))
        scores = from_target.index_select(0, to.rows) + from_source.index_select(0, to.pattern.columns)
        scores = F.leaky_relu(scores, self.negative_slope)
        weights = F.dropout(softmax(scores, to), self.dropout, self.training)
        return to.pattern.product(weights, h.flatten(0, 1)).view(len(h), -1) + self.bias


def softmax(scores: Tensor, to: Attended) -> Tensor:
    """Return the softmax of scores ``(k,)`` over each row."""
    n = to.pattern.shape[0]
    with torch.no_grad():
        highest = scores.new_full((n,), -torch.inf).scatter_reduce(0, to.rows, scores, "amax")
    exponential = (scores - highest[to.rows]).exp()
    return exponential / exponential.new_zeros(n).index_add(0, to.rows, exponential)[to.rows]


class DNAConv(gnn.DNAConv):
    """Dynamic neighbourhood aggregation of Fey 2019: ``(n, layers, channels)`` to ``(n, channels)``.

    A node's last layer attends to all layers of its neighbours. Queries, keys and values are made once for each node,
    not for each edge.

    Args:
        channels: Features of a node in each layer.
        heads: The number of heads.
        groups: The number of groups that projections divide the channels into.
        dropout: The part of attention weights that is dropped.
    """

    def __init__(self, channels: int, heads: int = 1, groups: int = 1, dropout: float = 0.0) -> None:
        super().__init__(channels, heads, groups, dropout)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Return the new features of all nodes."""
        (n, layers, channels), project = x.shape, self.multi_head
        to, width = attended(project.heads, layers)(edges, n), channels // project.heads
        q, k, v = (
            grouped(layer, part).view(-1, width)
            for layer, part in ((project.lin_q, x[:, -1]), (project.lin_k, x), (project.lin_v, x))
        )
        scores = to.pattern.scores(q, k).view(-1, layers) / math.sqrt(width)
        # A softmax with one more score, 0, by which a node can attend to nothing.
        weights = (scores - F.softplus(scores.logsumexp(1, keepdim=True))).exp()
        weights = F.dropout(weights, project.dropout, self.training) * to.weights[:, None]
        return to.pattern.product(weights.flatten(), v).view(n, channels)


def grouped(layer: GroupedLinear, x: Tensor) -> Tensor:
    """Return the output ``(rows, channels)`` of DNAConv's linear layer of several groups for ``(..., channels)``.

    Several groups together are one block of a diagonal: sixteen products with 8 x 8 matrices take seven times as long.
    """
    weights = layer.weight.split(len(layer.weight) // math.gcd(len(layer.weight), _BLOCKS))
    blocks = torch.stack([torch.block_diag(*some) for some in weights])
    rows = x.reshape(-1, len(blocks), blocks.shape[1]).transpose(0, 1)
    return torch.bmm(rows, blocks).transpose(0, 1).flatten(1) + layer.bias

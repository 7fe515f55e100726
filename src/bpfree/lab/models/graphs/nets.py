"""The networks of Launay et al. 2020, table 3 and 4, with torch_geometric's examples for references.

The dropout rates are those of backpropagation there. Classifiers give logarithms of probabilities, so that an error can
be taken before them, at the logits (where ``suggested_error_at`` points), or behind.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpfree.lab.errors import SettingsError
from bpfree.lab.models.graphs.attention import DNAConv, GATConv
from bpfree.lab.models.graphs.layers import ChebConv, GCNConv, Linear, SplineConv, dropout


class TwoConvolutions(nn.Module):
    """Two convolutions with a non-linearity and dropout between them: ``(n, features)`` to ``(n, classes)``.

    Args:
        first: The first convolution.
        second: The second one, which gives the logits.
        activation: The non-linearity.
        dropout: The part of hidden features that is dropped.
        input_dropout: The part of input features that is dropped.
    """

    suggested_error_at = "conv2"
    deepest_layer = "conv1"

    def __init__(
        self, first: nn.Module, second: nn.Module, activation: nn.Module, dropout: float, input_dropout: float
    ) -> None:
        super().__init__()
        self.conv1, self.act, self.dropout, self.conv2 = first, activation, nn.Dropout(dropout), second
        self.input_dropout = input_dropout

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Return the logarithms of the classes' probabilities for all nodes."""
        h = self.act(self.conv1(dropout(x, self.input_dropout, self.training), edges))
        return F.log_softmax(self.conv2(self.dropout(h), edges), dim=1)


class ChebNet(TwoConvolutions):
    """Chebyshev convolutions (Defferrard et al. 2016).

    Args:
        shape: ``(features,)``.
        classes: The number of classes.
        hidden: Features of a hidden node.
        polynomials: The number of Chebyshev polynomials.
        dropout: The part of hidden features that is dropped, before feedback enters.
    """

    suggested_taps = ("dropout",)

    def __init__(
        self, shape: Sequence[int], classes: int, hidden: int = 16, polynomials: int = 2, dropout: float = 0.5
    ) -> None:
        if polynomials < 1:
            raise SettingsError(f"polynomials={polynomials}: one at least.")
        first, second = ChebConv(features(shape), hidden, polynomials), ChebConv(hidden, classes, polynomials)
        super().__init__(first, second, nn.ReLU(), dropout, 0.0)


class GCN(TwoConvolutions):
    """Graph convolutions (Kipf and Welling 2017); GraphConv in Launay et al. 2020.

    Args:
        shape: ``(features,)``.
        classes: The number of classes.
        hidden: Features of a hidden node.
        dropout: The part of hidden features that is dropped, before feedback enters.
    """

    suggested_taps = ("dropout",)

    def __init__(self, shape: Sequence[int], classes: int, hidden: int = 16, dropout: float = 0.5) -> None:
        super().__init__(GCNConv(features(shape), hidden), GCNConv(hidden, classes), nn.ReLU(), dropout, 0.0)


class SplineNet(TwoConvolutions):
    """Spline convolutions (Fey et al. 2018) with the number of incoming edges as pseudo-coordinate.

    Args:
        shape: ``(features,)``.
        classes: The number of classes.
        hidden: Features of a hidden node.
        kernel_size: The number of matrices that a kernel goes through.
        dropout: The part of hidden features that is dropped, behind the place where feedback enters.
        input_dropout: The part of input features that is dropped.
    """

    suggested_taps = ("act",)

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        hidden: int = 16,
        kernel_size: int = 2,
        dropout: float = 0.5,
        input_dropout: float = 0.5,
    ) -> None:
        if kernel_size < 2:
            raise SettingsError(f"kernel_size={kernel_size}: two at least.")
        first, second = SplineConv(features(shape), hidden, kernel_size), SplineConv(hidden, classes, kernel_size)
        super().__init__(first, second, nn.ELU(), dropout, input_dropout)


class GAT(TwoConvolutions):
    """Graph attention (Velickovic et al. 2018).

    Args:
        shape: ``(features,)``.
        classes: The number of classes.
        hidden: Features of a hidden node, in each head.
        heads: The number of heads of the first layer; the second has one.
        dropout: The part of hidden features that is dropped, behind the place where feedback enters.
        input_dropout: The part of input features that is dropped.
        attention_dropout: The part of attention weights that is dropped in each of the two layers.
    """

    suggested_taps = ("act",)

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        hidden: int = 8,
        heads: int = 8,
        dropout: float = 0.6,
        input_dropout: float = 0.6,
        attention_dropout: tuple[float, float] = (0.6, 0.6),
    ) -> None:
        first = GATConv(features(shape), hidden, heads, attention_dropout[0])
        second = GATConv(hidden * heads, classes, 1, attention_dropout[1])
        super().__init__(first, second, nn.ELU(), dropout, input_dropout)


class DNA(nn.Module):
    """Dynamic neighbourhood aggregation (Fey 2019): ``(n, features)`` to ``(n, classes)``.

    The error is taken behind the logarithms of probabilities unless ``error_at`` is ``lin2``, the logits: Launay et al.
    2020's code does so for this network alone, so that the error of a node is its negative target.

    Args:
        shape: ``(features,)``.
        classes: The number of classes.
        hidden: Features of a hidden node.
        layers: The number of convolutions.
        heads: The number of heads of each.
        groups: The number of groups that their projections divide features into.
        dropout: The part of features that is dropped behind the first layer and before the last one.
        attention_dropout: The part of attention weights that is dropped.
        cut_stack: Let no gradient through the earlier layers that a convolution attends to, only through the last, as
            in the code of Launay et al. 2020. Under a direct rule none comes through anyway.
    """

    suggested_taps = ("acts.*",)
    deepest_layer = "lin1"

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        hidden: int = 128,
        layers: int = 5,
        heads: int = 8,
        groups: int = 16,
        dropout: float = 0.5,
        attention_dropout: float = 0.8,
        cut_stack: bool = False,
    ) -> None:
        super().__init__()
        if hidden % heads or hidden % groups or max(heads, groups) % min(heads, groups):
            raise SettingsError(
                f"hidden={hidden}, heads={heads}, groups={groups}: heads and groups must divide hidden, and the "
                "smaller of the two the larger."
            )
        self.lin1 = Linear(features(shape), hidden)
        self.convs = nn.ModuleList([DNAConv(hidden, heads, groups, attention_dropout) for _ in range(layers)])
        self.acts = nn.ModuleList([nn.ReLU() for _ in range(layers + 1)])
        self.dropout = nn.Dropout(dropout)
        self.lin2 = Linear(hidden, classes)
        self.cut_stack = cut_stack

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Return the logarithms of the classes' probabilities for all nodes."""
        h = self.dropout(self.acts[0](self.lin1(x)))
        stack = [h]
        for conv, act in zip(self.convs, self.acts[1:], strict=True):
            h = act(conv(torch.stack(stack, dim=1), edges))
            stack = [*(part.detach() if self.cut_stack else part for part in stack), h]
        return F.log_softmax(self.lin2(self.dropout(h)), dim=1)


class GraphEncoder(nn.Module):
    """The encoder of a graph auto-encoder (Kipf and Welling 2016, without noise): ``(n, features)`` to ``(n, code)``.

    Args:
        shape: ``(features,)``.
        code: Numbers of a node's code.
    """

    suggested_taps = ("act",)

    def __init__(self, shape: Sequence[int], code: int = 16) -> None:
        super().__init__()
        self.conv1, self.act, self.conv2 = GCNConv(features(shape), 2 * code), nn.ReLU(), GCNConv(2 * code, code)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Return the codes of all nodes; the inner product of two says whether an edge joins them."""
        return self.conv2(self.act(self.conv1(x, edges)), edges)


def features(shape: Sequence[int]) -> int:
    """Return the number of features of a node.

    Raises:
        SettingsError: Data of this shape are no nodes of a graph.
    """
    if len(shape) != 1:
        raise SettingsError(f"it takes nodes with features of shape (features,), not {tuple(shape)}.")
    return shape[0]

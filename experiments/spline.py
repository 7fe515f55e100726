"""SplineNet as torch_geometric 1.5.0 drew it, the version of Launay et al. 2020."""

from collections.abc import Sequence

from torch import nn

from bpfree.lab.models.graphs.layers import SplineConv
from bpfree.lab.models.graphs.nets import SplineNet


class SplineNet15(SplineNet):
    """The same network; a node's own features get as small a matrix as each of its neighbours' two.

    Today's bound of it is the square root of two times as large, as it does not count the two.

    Args:
        shape: ``(features,)``.
        classes: The number of classes.
    """

    def __init__(self, shape: Sequence[int], classes: int) -> None:
        super().__init__(shape, classes)
        for layer in self.modules():
            if isinstance(layer, SplineConv):
                bound = (len(layer.lins) * layer.lin.in_channels) ** -0.5
                nn.init.uniform_(layer.lin.weight, -bound, bound)

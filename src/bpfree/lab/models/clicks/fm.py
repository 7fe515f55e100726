"""The factorization machine."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from bpfree.lab.models.clicks.layers import second_order
from bpfree.lab.models.clicks.tables import Embedding, Fields, Initialization, LinearTerm


class FM(nn.Module):
    """A factorization machine: identifiers ``(N, fields)`` to logits ``(N,)``.

    The logit is a bias, a number for each identifier, and the inner product of the vectors of each pair of fields.
    Everything learns exactly under any rule: there is no layer below another one, and no tap.

    Source: Rendle 2010, of degree 2.

    Args:
        shape: The number of identifiers of each field, from the data.
        width: The numbers of an identifier's vector.
        initialization: ``default`` or ``torchfm``, see :mod:`bpfree.lab.models.clicks.tables`.
        sparse: The gradients of both tables are sparse, see :mod:`bpfree.lab.models.clicks.tables`.

    Raises:
        SettingsError: A size or a choice means nothing.
        TableSizeError: The tables do not fit into memory.
    """

    def __init__(
        self, shape: Sequence[int], width: int = 16, initialization: Initialization = "default", sparse: bool = False
    ) -> None:
        super().__init__()
        self.fields = Fields(shape, width + 1)
        self.linear = LinearTerm(self.fields, initialization, sparse)
        self.embedding = Embedding(self.fields, width, initialization, sparse)

    def forward(self, identifiers: Tensor) -> Tensor:
        """Return logits ``(N,)`` of int ``(N, fields)``."""
        rows = self.fields(identifiers)
        return self.linear(rows) + second_order(self.embedding(rows))

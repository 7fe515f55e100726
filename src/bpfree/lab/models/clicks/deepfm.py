"""DeepFM: a factorization machine and a perceptron on the same embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

import bpfree
from bpfree.lab.models.clicks.layers import PERCEPTRON_TAPS, Perceptron, second_order
from bpfree.lab.models.clicks.tables import Embedding, Fields, Initialization, LinearTerm


class DeepFM(nn.Module):
    """A factorization machine, and a perceptron on its vectors: identifiers ``(N, fields)`` to logits ``(N,)``.

    Feedback enters behind each block of the perceptron. Under direct rules the embeddings get no signal from the
    perceptron (:class:`bpfree.Cut`) and learn exactly through the factorization machine, as in Launay et al. 2020,
    section 3.1.2; under backpropagation they learn from both. The error is the logit's, one number a row.

    Source: Guo et al. 2017.

    Args:
        shape: The number of identifiers of each field, from the data.
        width: The numbers of an identifier's vector.
        hidden: The width of each block of the perceptron.
        dropout: The fraction of activations that dropout sets to zero behind each block.
        initialization: ``default`` or ``torchfm``, see :mod:`bpfree.lab.models.clicks.tables`.
        sparse: The gradients of both tables are sparse, see :mod:`bpfree.lab.models.clicks.tables`.

    Raises:
        SettingsError: A size or a choice means nothing.
        TableSizeError: The tables do not fit into memory.
    """

    suggested_taps: ClassVar[tuple[str, ...]] = (PERCEPTRON_TAPS,)

    def __init__(
        self,
        shape: Sequence[int],
        width: int = 10,
        hidden: Sequence[int] = (400, 400, 400),
        dropout: float = 0.0,
        initialization: Initialization = "default",
        sparse: bool = False,
    ) -> None:
        super().__init__()
        self.fields = Fields(shape, width + 1)
        self.linear = LinearTerm(self.fields, initialization, sparse)
        self.embedding = Embedding(self.fields, width, initialization, sparse)
        self.perceptron_cut = bpfree.Cut()
        self.perceptron = Perceptron(self.fields.count * width, hidden, dropout)
        self.out = nn.Linear(hidden[-1], 1)

    def forward(self, identifiers: Tensor) -> Tensor:
        """Return logits ``(N,)`` of int ``(N, fields)``."""
        rows = self.fields(identifiers)
        vectors = self.embedding(rows)
        deep = self.out(self.perceptron(self.perceptron_cut(vectors.flatten(1))))
        return self.linear(rows) + second_order(vectors) + deep.squeeze(1)

"""DeepFM: a factorization machine and a perceptron on the same embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from torch import Tensor, nn

import bpfree
from bpfree.lab.models.clicks.choices import check_choices
from bpfree.lab.models.clicks.layers import PERCEPTRON_TAPS, Perceptron, second_order
from bpfree.lab.models.clicks.tables import Embedding, Fields, Initialization, LinearTerm

Placement: TypeAlias = Literal["perceptron", "embeddings"]


class DeepFM(nn.Module):
    """A factorization machine, and a perceptron on its vectors: identifiers ``(N, fields)`` to logits ``(N,)``.

    Feedback enters behind each block of the perceptron. The error is the logit's, one number a row.

    Source: Guo et al. 2017.

    Args:
        shape: The number of identifiers of each field, from the data.
        width: The numbers of an identifier's vector.
        hidden: The width of each block of the perceptron.
        dropout: The fraction of activations that dropout sets to zero behind each block.
        placement: What the perceptron teaches the embeddings under direct rules. ``perceptron``: nothing
            (:class:`bpfree.Cut`); they learn exactly through the factorization machine alone, as in Launay et al. 2020,
            section 3.1.2. ``embeddings``: a tap below the perceptron sends them a signal too; not in the paper.
            Under backpropagation they learn from both parts.
        initialization: ``default`` or ``torchfm``, see :mod:`bpfree.lab.models.clicks.tables`.
        sparse: The gradients of both tables are sparse, see :mod:`bpfree.lab.models.clicks.tables`.

    Raises:
        SettingsError: A size or a choice means nothing.
        TableSizeError: The tables do not fit into memory.
    """

    def __init__(
        self,
        shape: Sequence[int],
        width: int = 10,
        hidden: Sequence[int] = (400, 400, 400),
        dropout: float = 0.0,
        placement: Placement = "perceptron",
        initialization: Initialization = "default",
        sparse: bool = False,
    ) -> None:
        super().__init__()
        check_choices(placement=(placement, Placement))
        self.fields = Fields(shape, width + 1)
        self.linear = LinearTerm(self.fields, initialization, sparse)
        self.embedding = Embedding(self.fields, width, initialization, sparse)
        self.below_perceptron = bpfree.Cut() if placement == "perceptron" else bpfree.Tap()
        self.perceptron = Perceptron(self.fields.count * width, hidden, dropout)
        self.out = nn.Linear(hidden[-1], 1)

    @staticmethod
    def suggested_taps(placement: Placement = "perceptron", **_: object) -> tuple[str, ...]:
        """Return patterns of the taps that a model with these arguments has."""
        below = ("below_perceptron",) if placement == "embeddings" else ()
        return (*below, PERCEPTRON_TAPS)

    def forward(self, identifiers: Tensor) -> Tensor:
        """Return logits ``(N,)`` of int ``(N, fields)``."""
        rows = self.fields(identifiers)
        vectors = self.embedding(rows)
        deep = self.out(self.perceptron(self.below_perceptron(vectors.flatten(1))))
        return self.linear(rows) + second_order(vectors) + deep.squeeze(1)

"""Deep & Cross: a cross network and a perceptron on the same embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import bpfree
from bpfree.lab.models.clicks.layers import PERCEPTRON_TAPS, CrossNetwork, Perceptron
from bpfree.lab.models.clicks.tables import Embedding, Fields, Initialization


class DeepCross(nn.Module):
    """A cross network and a perceptron beside each other: identifiers ``(N, fields)`` to logits ``(N,)``.

    Feedback enters behind the embeddings, each cross layer but the last, each block of the perceptron, and both
    outputs together (the stack), as in the released code of Launay et al. 2020. The last cross layer learns from the
    stack's signal, and the perceptron's last block from its own tap's. The error is the logit's, one number a row.

    Source: Wang et al. 2017.

    Args:
        shape: The number of identifiers of each field, from the data.
        width: The numbers of an identifier's vector.
        layers: The number of cross layers.
        hidden: The width of each block of the perceptron.
        dropout: The fraction of activations that dropout sets to zero behind each block.
        initialization: ``default`` or ``torchfm``, see :mod:`bpfree.lab.models.clicks.tables`.
        sparse: The gradient of the table is sparse, see :mod:`bpfree.lab.models.clicks.tables`.

    Raises:
        SettingsError: A size or a choice means nothing.
        TableSizeError: The table does not fit into memory.
    """

    def __init__(
        self,
        shape: Sequence[int],
        width: int = 16,
        layers: int = 6,
        hidden: Sequence[int] = (1024, 1024),
        dropout: float = 0.0,
        initialization: Initialization = "default",
        sparse: bool = False,
    ) -> None:
        super().__init__()
        self.fields = Fields(shape, width)
        inputs = self.fields.count * width
        self.embedding = Embedding(self.fields, width, initialization, sparse)
        self.embedding_tap = bpfree.Tap()
        self.cross = CrossNetwork(inputs, layers)
        self.perceptron = Perceptron(inputs, hidden, dropout)
        self.stack_tap = bpfree.Tap()
        self.out = nn.Linear(inputs + hidden[-1], 1)
        # The one number of a row, w.x, that a cross layer's weights learn from: cosines there are 1 or -1.
        self.aligned_layers = tuple(f"cross.layers.{number}.weight" for number in range(layers))

    @staticmethod
    def suggested_taps(layers: int = 6, **_: object) -> tuple[str, ...]:
        """Return patterns of the taps that a model with these arguments has."""
        between = ("cross.taps.*",) if layers > 1 else ()
        return ("embedding_tap", *between, PERCEPTRON_TAPS, "stack_tap")

    def forward(self, identifiers: Tensor) -> Tensor:
        """Return logits ``(N,)`` of int ``(N, fields)``."""
        x = self.embedding_tap(self.embedding(self.fields(identifiers)).flatten(1))
        stack = self.stack_tap(torch.cat([self.cross(x), self.perceptron(x)], dim=1))
        return self.out(stack).squeeze(1)

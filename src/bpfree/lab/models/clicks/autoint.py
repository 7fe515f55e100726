"""AutoInt: fields that attend to each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

import bpfree
from bpfree.lab.errors import SettingsError
from bpfree.lab.models.clicks.choices import check_counts
from bpfree.lab.models.clicks.layers import PERCEPTRON_TAPS, Perceptron
from bpfree.lab.models.clicks.tables import Embedding, Fields, Initialization, LinearTerm


class AutoInt(nn.Module):
    """Attention between fields, a perceptron and a linear term: identifiers ``(N, fields)`` to logits ``(N,)``.

    Feedback enters behind the embeddings, each layer of attention but the last, the sum of the last one and the
    residual, and each block of the perceptron. No paper says where: the released code of Launay et al. 2020 has this
    model, the paper does not. Inside a layer of attention weights are transported, as those authors do in transformers
    (their appendix D). The linear term has a table of its own and learns exactly.

    Source: Song et al. 2019, in torchfm's form: one residual over all layers of attention in place of one for each, and
    no non-linearity between them.

    Args:
        shape: The number of identifiers of each field, from the data.
        width: The numbers of an identifier's vector.
        attention_width: The numbers of a field in attention.
        heads: Attention heads; they divide the attention's width.
        layers: The number of layers of attention.
        hidden: The width of each block of the perceptron.
        dropout: The fraction of activations that dropout sets to zero behind each block of the perceptron.
        attention_dropout: The fraction of attention's weights that dropout sets to zero.
        initialization: ``default`` or ``torchfm``, see :mod:`bpfree.lab.models.clicks.tables`.
        sparse: The gradients of both tables are sparse, see :mod:`bpfree.lab.models.clicks.tables`.

    Raises:
        SettingsError: A size or a choice means nothing.
        TableSizeError: The tables do not fit into memory.
    """

    def __init__(
        self,
        shape: Sequence[int],
        width: int = 16,
        attention_width: int = 32,
        heads: int = 2,
        layers: int = 3,
        hidden: Sequence[int] = (400, 400, 400),
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        initialization: Initialization = "default",
        sparse: bool = False,
    ) -> None:
        super().__init__()
        check_counts(attention_width=attention_width, heads=heads, layers=layers)
        self.fields = Fields(shape, width + 1)
        fields = self.fields.count
        self.linear = LinearTerm(self.fields, initialization, sparse)
        self.embedding = Embedding(self.fields, width, initialization, sparse)
        self.embedding_tap = bpfree.Tap()
        self.into_attention = nn.Linear(width, attention_width)
        self.attention = nn.ModuleList(FieldAttention(attention_width, heads, attention_dropout) for _ in range(layers))
        self.taps = nn.ModuleList(bpfree.Tap() for _ in range(layers - 1))
        self.residual = nn.Linear(width, attention_width)
        self.attention_tap = bpfree.Tap()
        self.attention_out = nn.Linear(fields * attention_width, 1)
        self.perceptron = Perceptron(fields * width, hidden, dropout)
        self.out = nn.Linear(hidden[-1], 1)

    @staticmethod
    def suggested_taps(layers: int = 3, **_: object) -> tuple[str, ...]:
        """Return patterns of the taps that a model with these arguments has."""
        between = ("taps.*",) if layers > 1 else ()
        return ("embedding_tap", *between, "attention_tap", PERCEPTRON_TAPS)

    def forward(self, identifiers: Tensor) -> Tensor:
        """Return logits ``(N,)`` of int ``(N, fields)``."""
        rows = self.fields(identifiers)
        # Flat: every field gets a signal of its own, not one for all as the tokens of a sequence do.
        flat = self.embedding_tap(self.embedding(rows).flatten(1))
        attended = self._attend(flat.unflatten(1, (self.fields.count, -1)))
        deep = self.out(self.perceptron(flat))
        return self.linear(rows) + (self.attention_out(attended) + deep).squeeze(1)

    def _attend(self, vectors: Tensor) -> Tensor:
        """Return ``(N, fields * attention_width)`` of ``(N, fields, width)``."""
        h = self.attention[0](self.into_attention(vectors))
        for tap, layer in zip(self.taps, self.attention[1:], strict=True):
            h = layer(tap(h.flatten(1)).view_as(h))
        return self.attention_tap((h + self.residual(vectors)).relu().flatten(1))


class FieldAttention(nn.Module):
    """Self-attention of all fields of a row: ``(N, fields, d)`` to ``(N, fields, d)``.

    Args:
        width: d.
        heads: The number of heads.
        dropout: The fraction of attention's weights that dropout sets to zero.

    Raises:
        SettingsError: The heads do not divide the width.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise SettingsError(f"attention_width {width} must be a multiple of heads, {heads}.")
        self.heads, self.dropout = heads, dropout
        self.into = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        # As nn.MultiheadAttention draws them.
        nn.init.xavier_uniform_(self.into.weight)
        nn.init.zeros_(self.into.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, h: Tensor) -> Tensor:
        """Return for each field the weighted values of all fields."""
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.into(h).chunk(3, dim=2))
        dropout = self.dropout if self.training else 0.0
        gathered = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return self.out(gathered.transpose(1, 2).flatten(2))

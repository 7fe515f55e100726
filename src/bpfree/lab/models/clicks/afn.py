"""AFN: a logarithmic network that learns the orders of interactions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bpfree
from bpfree.lab.models.clicks.choices import check_choices, check_counts
from bpfree.lab.models.clicks.layers import PERCEPTRON_TAPS, Perceptron
from bpfree.lab.models.clicks.tables import Embedding, Fields, Initialization, LinearTerm

Placement: TypeAlias = Literal["corrected", "released"]

_TINY = 1e-7


class AFN(nn.Module):
    """Logarithmic neurons below a perceptron, and a linear term: identifiers ``(N, fields)`` to logits ``(N,)``.

    Feedback enters behind the logarithmic layer and each block of the perceptron. The linear term has a table of its
    own and learns exactly. The error is the logit's, one number a row.

    Sources: Cheng et al. 2020; Hines 1996 (logarithmic networks). Launay et al. 2020 took torchfm's form, which is not
    Cheng et al.'s, see :class:`LogarithmicLayer`.

    Args:
        shape: The number of identifiers of each field, from the data.
        width: The numbers of an identifier's vector.
        neurons: The number of logarithmic neurons.
        hidden: The width of each block of the perceptron.
        dropout: The fraction of activations that dropout sets to zero behind each block.
        placement: What the embeddings learn from under direct rules. ``corrected``: a tap behind them. ``released``:
            nothing, as in the released code of Launay et al. 2020, which cuts the graph there and leaves this tap out
            of its list; the vectors stay as they were drawn. Under backpropagation they learn in both.
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
        neurons: int = 1500,
        hidden: Sequence[int] = (400, 400, 400),
        dropout: float = 0.0,
        placement: Placement = "corrected",
        initialization: Initialization = "default",
        sparse: bool = False,
    ) -> None:
        super().__init__()
        check_choices(placement=(placement, Placement))
        self.fields = Fields(shape, width + 1)
        self.linear = LinearTerm(self.fields, initialization, sparse)
        self.embedding = Embedding(self.fields, width, initialization, sparse)
        self.behind_embedding = bpfree.Tap() if placement == "corrected" else bpfree.Cut()
        self.logarithmic = LogarithmicLayer(self.fields.count, neurons)
        self.logarithmic_tap = bpfree.Tap()
        self.perceptron = Perceptron(neurons * width, hidden, dropout)
        self.out = nn.Linear(hidden[-1], 1)

    @staticmethod
    def suggested_taps(placement: Placement = "corrected", **_: object) -> tuple[str, ...]:
        """Return patterns of the taps that a model with these arguments has."""
        below = ("behind_embedding",) if placement == "corrected" else ()
        return (*below, "logarithmic_tap", PERCEPTRON_TAPS)

    def forward(self, identifiers: Tensor) -> Tensor:
        """Return logits ``(N,)`` of int ``(N, fields)``."""
        rows = self.fields(identifiers)
        vectors = self.embedding(rows)
        # Flat: every field gets a signal of its own, not one for all as the tokens of a sequence do.
        vectors = self.behind_embedding(vectors.flatten(1)).view_as(vectors)
        products = self.logarithmic_tap(self.logarithmic(vectors).flatten(1))
        return self.linear(rows) + self.out(self.perceptron(products)).squeeze(1)


class LogarithmicLayer(nn.Module):
    r"""Neurons that multiply powers of the fields: ``(N, fields, width)`` to ``(N, width, neurons)``.

    .. math:: y_k = \max\Bigl(0, \exp\bigl(\textstyle\sum_f w_{kf} \log(1 + |v_f|)\bigr) - 1\Bigr)

    for each of the numbers of a vector, which is torchfm's form. In Cheng et al. 2020 it is the product
    of v_f to the power w_kf, of positive v. Here it is that of 1 + \|v_f\|, less 1, and not below 0: two
    factors of 0.5 with exponents 1 give 1.25 in place of 0.25, and signs are lost.

    Args:
        fields: The number of fields.
        neurons: The number of neurons.
    """

    def __init__(self, fields: int, neurons: int) -> None:
        super().__init__()
        check_counts(neurons=neurons)
        bound = 1 / math.sqrt(fields)
        self.weight = nn.Parameter(torch.empty(neurons, fields).uniform_(-bound, bound))

    def forward(self, vectors: Tensor) -> Tensor:
        """Return the neurons' products."""
        logarithms = (vectors.abs() + _TINY).log1p()
        # Neurons last, where the matrix product puts them: torchfm copies them to (N, neurons, width).
        return F.linear(logarithms.mT.contiguous(), self.weight).expm1().relu()

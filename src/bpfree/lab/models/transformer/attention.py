"""The ways in which a token sees itself and the tokens before it: ``(N, T, d)`` to ``(N, T, d)``.

All have a linear map behind the mixing of tokens. In :class:`CausalAttention` queries and keys say how much of each
value a token gets; the other three have neither:

============  =======================================================  ================================
attention     how much of the value of token j token i gets            source
============  =======================================================  ================================
``standard``  softmax over j of q_i k_j / sqrt(d / heads)              Vaswani et al. 2017
``dense``     softmax over j of output j of a network of token i       Tay et al. 2020, dense
``random``    softmax over j of a learned number for the places i, j   Tay et al. 2020, random
``fixed``     one of four patterns that hold no weights                Raganato et al. 2020
============  =======================================================  ================================
"""

from __future__ import annotations

from collections.abc import Collection

import torch.nn.functional as F
from torch import Tensor, nn

from bpfree.lab.models.transformer.fixed_patterns import FixedPatterns
from bpfree.lab.models.transformer.placement import AttentionKind, tap_or_none, through
from bpfree.lab.models.transformer.synthesizer import DenseScores, RandomScores, Synthesizer


def attention_module(
    kind: AttentionKind, width: int, heads: int, context: int, dropout: float, taps: Collection[str]
) -> nn.Module:
    """Return a new module of this kind.

    Args:
        kind: See above.
        width: d.
        heads: The number of mixings, each of ``d / heads`` values.
        context: The largest number of tokens.
        dropout: The fraction of the mixing's weights that is set to zero; fixed patterns have none.
        taps: The names of the block's taps.

    Raises:
        SettingsError: Fixed patterns are asked for with another number of heads than theirs.
    """
    if kind == "standard":
        return CausalAttention(width, heads, dropout, taps)
    if kind == "fixed":
        return FixedPatterns(width, heads, context, taps)
    scores = DenseScores(width, heads, context, taps) if kind == "dense" else RandomScores(heads, context)
    return Synthesizer(scores, width, heads, context, dropout, taps)


class CausalAttention(nn.Module):
    """Self-attention in which no token sees a later one: ``(N, T, d)`` to ``(N, T, d)``."""

    def __init__(self, width: int, heads: int, dropout: float, taps: Collection[str]) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.into = nn.Linear(width, 3 * width)
        self.mixing_tap = tap_or_none("attention.mixing_tap", taps)
        self.out = nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        """Return for each token the weighted values of itself and of the tokens before it."""
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.into(h).chunk(3, dim=2))
        dropout = self.dropout if self.training else 0.0
        gathered = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        return self.out(through(self.mixing_tap, gathered.transpose(1, 2).flatten(2)))

"""A decoder-only transformer for language modelling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bpfree
from bpfree.lab.errors import SettingsError
from bpfree.lab.models.activations import Activation, activation_module

Norm: TypeAlias = Literal["post", "pre"]
Positions: TypeAlias = Literal["learned", "sinusoidal"]

_EMBEDDING_STD = 0.02  # Radford et al. 2019


class CausalTransformer(nn.Module):
    """Blocks of causal attention and a feed-forward network: tokens ``(N, T)`` to logits ``(N, T, classes)``.

    Each block begins with weights of its own and ends in a tap. The error is best taken below the vocabulary head
    (``error_at="below_head"``), where it is as wide as a block; the last block's tap then stands where the error is
    taken, and gets its exact gradient.

    Sources: Vaswani et al. 2017 (post-norm, sinusoidal positions); Xiong et al. 2020 (pre-norm). Other than in
    Vaswani et al. embeddings are not multiplied by sqrt(width): sinusoidal positions are large beside them at first.

    Args:
        shape: ``(context,)``, the largest number of tokens in a sequence.
        classes: The number of tokens in the vocabulary.
        blocks: The number of blocks.
        width: The width d of the residual stream.
        heads: Attention heads; they divide the width.
        hidden: The width of the feed-forward network's hidden layer.
        norm: Normalize behind each residual sum (post), or in front of each branch and once below the head (pre). The
            branches of pre-norm are scaled by 1 / sqrt(blocks).
        positions: A learned vector for each position, or fixed waves.
        activation: The non-linearity of the feed-forward network.
        dropout: The fraction of activations that dropout sets to zero in attention, behind each branch and behind the
            embedding.
    """

    suggested_taps: ClassVar[tuple[str, ...]] = ("blocks.*.tap",)
    suggested_error_at: ClassVar[str] = "below_head"

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        blocks: int = 4,
        width: int = 128,
        heads: int = 4,
        hidden: int = 512,
        norm: Norm = "post",
        positions: Positions = "learned",
        activation: Activation = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if len(shape) != 1:
            raise SettingsError(f"CausalTransformer takes tokens of shape (context,), not {tuple(shape)}.")
        if width % heads or width % 2:
            raise SettingsError(f"width {width} must be even and a multiple of heads, {heads}.")
        (context,) = shape
        self.tokens = nn.Embedding(classes, width)
        self.positions = _learned(context, width) if positions == "learned" else Waves(context, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(width, heads, hidden, norm, 1 / math.sqrt(blocks), activation, dropout) for _ in range(blocks)
        )
        self.below_head = nn.Identity()
        self.norm = nn.LayerNorm(width) if norm == "pre" else nn.Identity()
        self.head = nn.Linear(width, classes)
        nn.init.normal_(self.tokens.weight, std=_EMBEDDING_STD)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits ``(N, T, classes)`` of the token after each of ``tokens``, int64 ``(N, T)``."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        h = self.dropout(self.tokens(tokens) + self.positions(places))
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(self.below_head(h)))


class Block(nn.Module):
    """Attention and a feed-forward network, each in a residual branch, and a tap: ``(N, T, d)`` to ``(N, T, d)``.

    Args:
        width: d.
        heads: Attention heads.
        hidden: The width of the hidden layer.
        norm: Where to normalize, see :class:`CausalTransformer`.
        scale: The factor of pre-norm's branches.
        activation: The non-linearity of the feed-forward network.
        dropout: In attention and behind each branch.
    """

    def __init__(
        self, width: int, heads: int, hidden: int, norm: Norm, scale: float, activation: Activation, dropout: float
    ) -> None:
        super().__init__()
        self.pre, self.scale = norm == "pre", scale
        self.attention = CausalAttention(width, heads, dropout)
        self.norm1 = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, hidden), activation_module(activation), nn.Linear(hidden, width)
        )
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.tap = bpfree.Tap()

    def forward(self, h: Tensor) -> Tensor:
        """Return the block's output, shaped as ``h``."""
        for branch, norm in ((self.attention, self.norm1), (self.feed_forward, self.norm2)):
            h = h + self.scale * self.dropout(branch(norm(h))) if self.pre else norm(h + self.dropout(branch(h)))
        return self.tap(h)


class CausalAttention(nn.Module):
    """Self-attention in which no token sees a later one: ``(N, T, d)`` to ``(N, T, d)``."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.into = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        """Return for each token the weighted values of itself and of the tokens before it."""
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.into(h).chunk(3, dim=2))
        dropout = self.dropout if self.training else 0.0
        gathered = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        return self.out(gathered.transpose(1, 2).flatten(2))


class Waves(nn.Module):
    """Fixed positions: sines and cosines of wavelengths from 2 pi to 10,000 * 2 pi; int64 ``(T,)`` to ``(T, d)``."""

    waves: Tensor

    def __init__(self, context: int, width: int) -> None:
        super().__init__()
        angles = torch.arange(context).unsqueeze(1) * 10_000 ** (-torch.arange(0, width, 2) / width)
        self.register_buffer("waves", torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1), persistent=False)

    def forward(self, places: Tensor) -> Tensor:
        """Return the vectors of these positions."""
        return self.waves[places]


def _learned(context: int, width: int) -> nn.Embedding:
    positions = nn.Embedding(context, width)
    nn.init.normal_(positions.weight, std=_EMBEDDING_STD)
    return positions
